"""Tasks that read windows of running text, and the first of them: predicting the next token.

Shapes: B rows, T positions.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lmjax import objectives
from lmjax.config import CausalConfig, Config, DataConfig, RNNConfig, UserError
from lmjax.data import examples
from lmjax.data.order import Order
from lmjax.data.store import Store
from lmjax.data.tokenizer import Tokenizer
from lmjax.generate import LanguageModel, Sampling, generate
from lmjax.models import families, ngram, rnn
from lmjax.tasks.task import Batch, Loss, Task

BASELINE_TOKENS = 20_000_000


def data_of(config: Config) -> DataConfig:
    """The data of a configuration whose task reads text."""
    assert isinstance(config.data, DataConfig)
    return config.data


def sample_order(config: Config, store: Store, *, streams: int = 0) -> Order:
    """Which window stands at which position. With `streams` the windows of an epoch are a multiple of it, in order."""
    context, data = config.model.context, data_of(config)
    weights = tuple(source.weight for source in data.mixture) or (1.0,)
    changes = ((0, weights), *((token // context, shares) for token, shares in data.mixture_changes))
    windows = tuple(examples.windows(tokens, context) for tokens in store.sources)
    if streams:
        windows = tuple(count // streams * streams for count in windows)
        if min(windows) == 0:
            raise UserError(
                f"the corpus has fewer than {streams} windows of {context} tokens, one for each sequence of a batch: "
                "set a smaller batch.tokens or model.context, or model.carried=false"
            )
    return Order(windows, seed=config.seed, weights=changes, exclude=data.exclude, shuffle=data.shuffle and not streams)


@dataclass(frozen=True, eq=False)
class TextTask(Task):
    """Samples are windows of the store's sources."""

    def row_text(self, rows: Batch, row: int) -> str:
        ids = np.concatenate([rows["inputs_BT"][row], rows["targets_BT"][row, -1:]])
        return self.store.tokenizer.decode(ids)

    def documents_of(self, sample: int) -> list[tuple[int, int]]:
        source, start = self._start(sample)
        starts, size = self.store.sources[source].starts, len(self.store.sources[source].ids)
        stop = start + self.config.model.context  # the last token read, as a target
        first, last = np.searchsorted(starts, [start, stop % size], side="right") - 1
        documents = range(first, last + 1) if stop < size else (*range(first, len(starts)), *range(last + 1))
        return [(source, int(document)) for document in documents]

    def place(self, sample: int) -> str:
        """The documents of a sample in words, and where it begins in the first."""
        found = self.documents_of(sample)
        source, start = self._start(sample)
        offset = start - int(self.store.sources[source].starts[found[0][1]])
        last = f" to document {found[-1][1]}" if len(found) > 1 else ""
        return f"document {found[0][1]} from its token {offset:,}{last}"

    def beginning(self, source: int, document: int, count: int) -> str:
        tokens = self.store.sources[source]
        start = int(tokens.starts[document])
        return self.store.tokenizer.decode(tokens.ids[start : start + count])

    def _start(self, sample: int) -> tuple[int, int]:
        """Source and first token of a sample."""
        source, start = self._begin(sample)
        return int(source), int(start)

    def _begin(self, ids: Any) -> tuple[np.ndarray, np.ndarray]:
        return examples.begin(self.store.sources, ids, order=self.order, context=self.config.model.context)


@dataclass(frozen=True, eq=False)
class Causal(TextTask):
    """Next-token prediction (GPT, NNLM, RNN)."""

    @classmethod
    def build(cls, config: Config, store: Store) -> "Causal":
        return cls(config, store, families.build(config.model), sample_order(config, store))

    def arrays(self, ids: np.ndarray) -> Batch:
        context = self.config.model.context
        return examples.rows(self.store.sources, *self._begin(ids), context=context, **self._packing())

    def blank(self, rows: int) -> Batch:
        shape = rows, self.config.model.context
        names = ["inputs_BT", "targets_BT"] + ["segments_BT", "positions_BT"] * data_of(self.config).packed
        return {name: np.zeros(shape, np.int32) for name in names} | {"weights_BT": np.zeros(shape, np.float32)}

    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        objective = self._objective(train)
        return Loss(*objectives.causal(self.model, params, batch, rng=rng, config=objective, train=train))

    def by_row(self, params: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        return objectives.causal_by_row(self.model, params, batch, chunk=self._objective(False).chunk)

    def _objective(self, train: bool) -> CausalConfig:
        """The objective; what is measured has no regularisation."""
        found = self.config.objective
        assert isinstance(found, CausalConfig)
        return found if train else CausalConfig(chunk=found.chunk)

    def validation(self) -> Iterator[Batch]:
        context, rows = self.config.model.context, self.config.batch.microbatch
        return examples.validation(self.store.validation, context=context, microbatch=rows, **self._packing())

    def scores(self, totals: Mapping[str, float]) -> dict[str, float]:
        loss = totals["loss"] / totals["weight"]
        return {"val_loss": loss, "val_bits_per_byte": self.bits_per_byte(loss)}

    def bits_per_byte(self, nats_per_token: float) -> float:
        """The information of all predicted validation tokens over the bytes of their text, whatever the tokenizer."""
        tokens, packing = self.store.validation, self._packing()
        unpredicted = self.store.tokenizer.decode(tokens.ids[examples.unpredicted(tokens, **packing)])
        nats = nats_per_token * examples.predicted(tokens, **packing)
        return nats / math.log(2) / (tokens.bytes - len(unpredicted.encode()))

    def baselines(self) -> dict[str, float]:
        """Bits per byte of a byte unigram and of an interpolated Kneser-Ney 5-gram over the same tokens, same split.

        They count at most `BASELINE_TOKENS`, the same number from the start of each source.
        """
        tokenizer, sources = self.store.tokenizer, self.store.sources
        training = [np.asarray(tokens.ids[: BASELINE_TOKENS // len(sources)]) for tokens in sources]
        validation, end = np.asarray(self.store.validation.ids), tokenizer.end_of_text

        def text(ids: np.ndarray) -> bytes:
            return tokenizer.decode(ids[ids != end] if end is not None else ids).encode()

        unigram = ngram.unigram_bits_per_byte(b"".join(map(text, training)), text(validation))
        nats = ngram.kneser_ney(training, validation, vocab_size=tokenizer.vocab_size, order=5, end_of_text=end)
        return {
            "unigram_bits_per_byte": unigram,
            "kneser_ney_5gram_bits_per_byte": self.bits_per_byte(nats / (len(validation) - 1)),
        }

    def sample(self, params: Any) -> str:
        """`train.sample_prompt`, or the end of a document, continued."""
        train, tokenizer = self.config.train, self.store.tokenizer
        settings = {"max_tokens": train.sample_tokens, "temperature": 0.8, "seed": self.config.seed}
        return self.answer(params, train.sample_prompt, tokenizer=tokenizer, past_end=True, **settings)

    def answer(self, params: Any, prompt: str, *, tokenizer: Tokenizer, **settings: Any) -> str:
        """The prompt (empty: the beginning of a document), continued."""
        lm = LanguageModel(self.model, params, tokenizer)
        return prompt + generate(lm, [prompt], sampling=Sampling(**settings))[0]

    def _packing(self) -> dict[str, Any]:
        return {"packed": data_of(self.config).packed, "end_of_text": self.store.tokenizer.end_of_text}


@dataclass(frozen=True, eq=False)
class Carried(Causal):
    """Next-token prediction where each row goes on with the state that its window before ended in.

    streams: the rows of a batch; the windows of an epoch are cut into so many parts, and row r reads part r in order.
    A row whose window does not follow the one before (a new epoch, data left out) begins with a state of zeros.
    """

    streams: int = 0

    @classmethod
    def build(cls, config: Config, store: Store) -> "Carried":
        sizes = {tokens for _, tokens in config.batch.tokens}
        if len(sizes) > 1:
            raise UserError(
                "model.carried needs one batch size: give batch.tokens one entry, or set model.carried=false"
            )
        if data_of(config).mixture:
            raise UserError("model.carried reads one source: leave data.mixture out, or set model.carried=false")
        unit = config.batch.microbatch * config.model.context
        streams = max(1, (2 * sizes.pop() + unit) // (2 * unit)) * config.batch.microbatch
        order = sample_order(config, store, streams=streams)
        return cls(config, store, families.build(config.model), order, streams=streams)

    def begin(self, rows: tuple[int, ...]) -> Any:
        model = self.config.model
        assert isinstance(model, RNNConfig)
        count = math.prod(rows)
        carry = {"state": rnn.begin(model, count), "place": jnp.full(count, -1, jnp.int32)}
        return jax.tree.map(lambda leaf: leaf.reshape(*rows, *leaf.shape[1:]), carry)

    def arrays(self, ids: np.ndarray) -> Batch:
        place_B = np.asarray(ids % 2**31, np.int32)  # enough to tell whether windows follow each other
        part = self.order.windows[0] // self.streams
        first_B = self._window(ids) % part == 0
        follows_B = np.where(first_B, -2, np.asarray((ids - self.streams) % 2**31)).astype(np.int32)
        return super().arrays(ids) | {"place_B": place_B, "follows_B": follows_B}

    def blank(self, rows: int) -> Batch:
        return super().blank(rows) | {name: np.zeros(rows, np.int32) for name in ("place_B", "follows_B")}

    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        objective = self._objective(train)
        if carry is None:
            carry = self.begin((len(batch["inputs_BT"]),))
        goes_on_B = carry["place"] == batch["follows_B"]
        state = jax.tree.map(
            lambda x: jnp.where(goes_on_B.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x)), carry["state"]
        )
        found = objectives.causal(self.model, params, batch, rng=rng, carry=state, config=objective, train=train)
        loss, weight, sums, state = found
        return Loss(loss, weight, sums, {"state": jax.lax.stop_gradient(state), "place": batch["place_B"]})

    def validation(self) -> Iterator[Batch]:
        """Row r of every batch reads the r-th part of the split, so that its state goes on."""
        context, rows = self.config.model.context, self.config.batch.microbatch
        parts = examples.validation(
            self.store.validation, context=context, microbatch=rows, streams=True, **self._packing()
        )
        for number, batch in enumerate(parts):
            follows = number - 1 if number else -2
            yield batch | {
                "place_B": np.full(rows, number, np.int32),
                "follows_B": np.full(rows, follows, np.int32),
            }

    def _window(self, ids: Any) -> np.ndarray:
        """The window that each sample stands for: ids count the places of a batch, so that the order need not know."""
        _, _, index = self.order.split_id(ids)
        return index % self.streams * (self.order.windows[0] // self.streams) + index // self.streams

    def _begin(self, ids: Any) -> tuple[np.ndarray, np.ndarray]:
        source, epoch, _ = self.order.split_id(ids)
        context = self.config.model.context
        start = examples.window_start(
            self.store.sources, source, epoch, self._window(ids), order=self.order, context=context
        )
        return source, start
