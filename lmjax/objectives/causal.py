"""Next-token prediction."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax import Array

from lmjax.config import CausalConfig, Config
from lmjax.data.batches.windows import predicted, unpredicted, validation_windows, window_rows
from lmjax.data.store.store import Store
from lmjax.data.tokenizer import Tokenizer
from lmjax.inference.generate import generate
from lmjax.inference.language_model import LanguageModel
from lmjax.inference.sampling import Sampling
from lmjax.models import ngram, registry
from lmjax.objectives import losses
from lmjax.objectives.objective import Batch, Loss
from lmjax.objectives.text import BASELINE_TOKENS, TextObjective, data_of, sample_order


@dataclass(frozen=True, eq=False)
class Causal(TextObjective):
    """Next-token prediction (GPT, NNLM, RNN)."""

    @classmethod
    def build(cls, config: Config, store: Store) -> "Causal":
        """Build the objective from a resolved configuration and its prepared data."""
        return cls(config, store, registry.build(config.model), sample_order(config, store))

    def arrays(self, ids: np.ndarray) -> Batch:
        """Return the rows (B, ...) of the samples `ids`."""
        context = self.config.model.context
        return window_rows(self.store.sources, *self._begin(ids), context=context, **self._packing())

    def blank(self, rows: int) -> Batch:
        """Return rows of zeros with the names, shapes and types of `arrays`."""
        shape = rows, self.config.model.context
        names = ["inputs_BT", "targets_BT"] + ["segments_BT", "positions_BT"] * data_of(self.config).packed
        return {name: np.zeros(shape, np.int32) for name in names} | {"weights_BT": np.zeros(shape, np.float32)}

    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        """Return the loss sum, the weight sum and further sums of a batch."""
        objective = self._objective(train)
        return Loss(*losses.causal(self.model, params, batch, rng=rng, config=objective, train=train))

    def by_row(self, params: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return the loss sum (B) and the weight (B) of each row, without regularisation."""
        return losses.causal_by_row(self.model, params, batch, chunk=self._objective(False).chunk)

    def _objective(self, train: bool) -> CausalConfig:
        """Return the objective; regularisation is off for measurements."""
        found = self.config.objective
        assert isinstance(found, CausalConfig)
        return found if train else CausalConfig(chunk=found.chunk)

    def validation(self) -> Iterator[Batch]:
        """Yield the complete validation split as microbatches."""
        context, rows = self.config.model.context, self.config.batch.microbatch
        return validation_windows(self.store.validation, context=context, microbatch=rows, **self._packing())

    def scores(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return `val_loss` and further metrics from the sums over the validation split."""
        loss = totals["loss"] / totals["weight"]
        return {"val_loss": loss, "val_bits_per_byte": self.bits_per_byte(loss)}

    def bits_per_byte(self, nats_per_token: float) -> float:
        """Convert a validation loss to bits per byte of text, comparable across tokenizers."""
        tokens, packing = self.store.validation, self._packing()
        text = self.store.tokenizer.decode(tokens.ids[unpredicted(tokens, **packing)])
        nats = nats_per_token * predicted(tokens, **packing)
        return nats / math.log(2) / (tokens.bytes - len(text.encode()))

    def baselines(self) -> dict[str, float]:
        """Return the bits per byte of two baselines on the validation split.

        The baselines are a byte unigram and an interpolated Kneser-Ney 5-gram. Both count at most `BASELINE_TOKENS`
        training tokens, the same number from the start of each source.
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
        """Continue `train.sample_prompt` (empty: the beginning of a document)."""
        train, tokenizer = self.config.train, self.store.tokenizer
        settings = {"max_tokens": train.sample_tokens, "temperature": 0.8, "seed": self.config.seed}
        return self.answer(params, train.sample_prompt, tokenizer=tokenizer, past_end=True, **settings)

    def answer(self, params: Any, prompt: str, *, tokenizer: Tokenizer, **settings: Any) -> str:
        """Return the prompt (empty: the beginning of a document) and its continuation."""
        lm = LanguageModel(self.model, params, tokenizer)
        return prompt + generate(lm, [prompt], sampling=Sampling(**settings))[0]

    def _packing(self) -> dict[str, Any]:
        return {"packed": data_of(self.config).packed, "end_of_text": self.store.tokenizer.end_of_text}
