"""Samples of running text: windows, consecutive windows, and masked pairs of passages.

Shapes: B rows, T positions (the context), P places that are predicted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from lmjax.config import Config, DataConfig, MaskedConfig, UserError
from lmjax.data.batches import masking
from lmjax.data.batches.windows import begin_window, find_windows, validation_windows, window_rows, window_start
from lmjax.data.order.order import Order
from lmjax.data.store.store import Store
from lmjax.objectives import examples
from lmjax.objectives.mixture_samples import describe_mixture, parts_by_source, source_labels
from lmjax.objectives.samples import Batch, Samples


def _data(config: Config) -> DataConfig:
    assert isinstance(config.data, DataConfig)
    return config.data


def window_order(config: Config, store: Store, *, streams: int = 0) -> Order:
    """Build the order of windows.

    With `streams` > 0, the number of windows of an epoch is a multiple of `streams`, and windows are not shuffled.

    Raises:
        UserError: The corpus is too short.
    """
    context, data = config.model.context, _data(config)
    weights = tuple(source.weight for source in data.mixture) or (1.0,)
    changes = ((0, weights), *((token // context, shares) for token, shares in data.mixture_changes))
    windows = tuple(find_windows(tokens, context) for tokens in store.sources)
    if streams:
        windows = tuple(count // streams * streams for count in windows)
        if min(windows) == 0:
            raise UserError(
                f"the corpus has fewer than {streams} windows of {context} tokens, one for each sequence of a batch: "
                "set a smaller batch.tokens or model.context, or model.carried=false"
            )
    return Order(windows, seed=config.seed, weights=changes, exclude=data.exclude, shuffle=data.shuffle and not streams)


@dataclass(frozen=True, eq=False)
class TextSamples(Samples):
    """Windows of the store's sources; each token is to be predicted from those before it."""

    @classmethod
    def build(cls, config: Config, store: Store) -> Self:
        """Build the samples of a resolved configuration and its prepared data."""
        return cls(config, store, window_order(config, store))

    @property
    def packing(self) -> dict[str, Any]:
        """How documents share a window: arguments of functions in `data.batches.windows`."""
        return {"packed": _data(self.config).packed, "end_of_text": self.store.tokenizer.end_of_text}

    def arrays(self, ids: np.ndarray) -> Batch:
        """Return the rows (B, ...) of the samples `ids`."""
        context = self.config.model.context
        return window_rows(self.store.sources, *self._begin(ids), context=context, **self.packing)

    def blank(self, rows: int) -> Batch:
        """Return rows of zeros with the names, shapes and types of `arrays`."""
        shape = rows, self.config.model.context
        names = ["inputs_BT", "targets_BT"] + ["segments_BT", "positions_BT"] * _data(self.config).packed
        return {name: np.zeros(shape, np.int32) for name in names} | {"weights_BT": np.zeros(shape, np.float32)}

    def validation(self) -> Iterator[Batch]:
        """Yield the complete validation split as microbatches."""
        context, rows = self.config.model.context, self.config.batch.microbatch
        return validation_windows(self.store.validation, context=context, microbatch=rows, **self.packing)

    def example(self) -> str:
        """Return the first words of the validation split."""
        ids, end = np.asarray(self.store.validation.ids[: examples.TOKENS]), self.store.tokenizer.end_of_text
        return examples.beginning(self.store.tokenizer.decode(ids[ids != end] if end is not None else ids))

    def describe(self) -> list[str]:
        """Describe the prepared data, and the shares of the sources of a mixture."""
        train, batch = self.config.train, self.config.batch.microbatch * self.config.model.context
        limits = {
            f"train.{name}={count}": count * batch
            for name, count in (("evaluate_batches", train.evaluate_batches), ("final_batches", train.final_batches))
        }
        return [*super().describe(), *describe_mixture(self.store, self.mixture(0), limits=limits)]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """A short, distinct label for each source of a mixture; empty without a mixture."""
        return source_labels(_data(self.config).mixture)

    def mixture(self, samples: int) -> dict[str, float]:
        """Return the share of each source in the training after this number of samples.

        The key is the source's label.
        """
        shares = [row for start, row in self.order.shares if start <= max(samples - 1, 0)]
        return dict(zip(self.labels, shares[-1], strict=True)) if self.labels else {}

    def epochs(self, samples: int) -> dict[str, float]:
        """Return the epochs of each source of a mixture in `samples`; empty without one."""
        starts, shares = zip(*self.order.shares, strict=True)
        lengths = np.diff(np.minimum([*starts, samples], samples))
        tokens = (lengths @ np.asarray(shares)) * self.config.model.context
        sizes = [len(source.ids) for source in self.store.sources]
        return dict(zip(self.labels, tokens / sizes, strict=True)) if self.labels else {}

    def by_source(self, number: int, rows: Batch) -> dict[str, Batch]:
        """Return validation batch `number` once for each source of a mixture that it has.

        The key is the source's label. A batch has only the weights of that source; if all weights are of one source, it
        is `rows` itself.
        """
        if not self.labels:
            return {}
        return parts_by_source(self.store, self.labels, rows, places=self.validation_places(number))

    def validation_places(self, number: int) -> dict[str, np.ndarray]:
        """Return the position in the stream that each weight of a validation batch measures."""
        context, rows = self.config.model.context, self.config.batch.microbatch
        start_B = (np.arange(rows) + number * rows) * context
        return {"weights_BT": start_B[:, None] + np.arange(1, context + 1)}

    def row_text(self, rows: Batch, row: int) -> str:
        """Decode a row of a batch to text."""
        ids = np.concatenate([rows["inputs_BT"][row], rows["targets_BT"][row, -1:]])
        return self.store.tokenizer.decode(ids)

    def documents_of(self, sample: int) -> list[tuple[int, int]]:
        """Return (source, document) of every document that a sample reads."""
        source, start = self._start(sample)
        starts, size = self.store.sources[source].starts, len(self.store.sources[source].ids)
        stop = start + self.config.model.context  # the last token read, as a target
        first, last = np.searchsorted(starts, [start, stop % size], side="right") - 1
        documents = range(first, last + 1) if stop < size else (*range(first, len(starts)), *range(last + 1))
        return [(source, int(document)) for document in documents]

    def place(self, sample: int) -> str:
        """Describe the documents of a sample and the offset of its first token."""
        documents = [document for _, document in self.documents_of(sample)]
        source, start = self._start(sample)
        offset = start - int(self.store.sources[source].starts[documents[0]])
        last = f" to document {documents[-1]}" if len(documents) > 1 else ""
        return f"document {documents[0]} from its token {offset:,}{last}"

    def beginning(self, source: int, document: int, count: int) -> str:
        """Return the first `count` tokens of a document as text."""
        tokens = self.store.sources[source]
        start = int(tokens.starts[document])
        return self.store.tokenizer.decode(tokens.ids[start : start + count])

    def _start(self, sample: int) -> tuple[int, int]:
        """Return the source and the first token of a sample."""
        source, start = self._begin(sample)
        return int(source), int(start)

    def _begin(self, ids: Any) -> tuple[np.ndarray, np.ndarray]:
        return begin_window(self.store.sources, ids, order=self.order, context=self.config.model.context)


@dataclass(frozen=True, eq=False)
class CarriedSamples(TextSamples):
    """Windows in the order of the text: a row continues its row of the previous batch.

    `place_B` identifies the window of a row, and `follows_B` the window that it follows (-2: none).
    """

    #: Number of rows of a batch. The windows of an epoch are cut into this many parts; row r reads part r in order.
    streams: int = 0

    @classmethod
    def build(cls, config: Config, store: Store) -> Self:
        """Build the samples of a resolved configuration and its prepared data."""
        sizes = {tokens for _, tokens in config.batch.tokens}
        if len(sizes) > 1:
            raise UserError(
                "model.carried needs one batch size: give batch.tokens one entry, or set model.carried=false"
            )
        if _data(config).mixture:
            raise UserError("model.carried reads one source: leave data.mixture out, or set model.carried=false")
        unit = config.batch.microbatch * config.model.context
        streams = max(1, (2 * sizes.pop() + unit) // (2 * unit)) * config.batch.microbatch
        return cls(config, store, window_order(config, store, streams=streams), streams)

    def arrays(self, ids: np.ndarray) -> Batch:
        """Return the rows (B, ...) of the samples `ids`."""
        place_B = np.asarray(ids % 2**31, np.int32)  # enough to tell whether windows follow each other
        part = self.order.windows[0] // self.streams
        first_B = self._window(ids) % part == 0
        follows_B = np.where(first_B, -2, np.asarray((ids - self.streams) % 2**31)).astype(np.int32)
        return super().arrays(ids) | {"place_B": place_B, "follows_B": follows_B}

    def blank(self, rows: int) -> Batch:
        """Return rows of zeros with the names, shapes and types of `arrays`."""
        return super().blank(rows) | {name: np.zeros(rows, np.int32) for name in ("place_B", "follows_B")}

    def validation(self) -> Iterator[Batch]:
        """Yield the validation split; row r of every batch reads part r of it in order."""
        context, rows = self.config.model.context, self.config.batch.microbatch
        batches = validation_windows(
            self.store.validation, context=context, microbatch=rows, streams=True, **self.packing
        )
        for number, batch in enumerate(batches):
            follows = number - 1 if number else -2
            yield batch | {
                "place_B": np.full(rows, number, np.int32),
                "follows_B": np.full(rows, follows, np.int32),
            }

    def _window(self, ids: Any) -> np.ndarray:
        """Map sample ids to windows.

        Ids count places of a batch, so that `Order` does not depend on `streams`.
        """
        _, _, index = self.order.split_id(ids)
        return index % self.streams * (self.order.windows[0] // self.streams) + index // self.streams

    def _begin(self, ids: Any) -> tuple[np.ndarray, np.ndarray]:
        source, epoch, _ = self.order.split_id(ids)
        context = self.config.model.context
        start = window_start(self.store.sources, source, epoch, self._window(ids), order=self.order, context=context)
        return source, start


@dataclass(frozen=True, eq=False)
class MaskedSamples(TextSamples):
    """Pairs of passages with masked tokens (`lmjax.data.batches.masking`)."""

    @classmethod
    def build(cls, config: Config, store: Store) -> Self:
        """Build the samples of a resolved configuration and its prepared data."""
        masking.facts(store.tokenizer)  # raises if the tokenizer lacks a special token
        return super().build(config, store)

    @property
    def _masked(self) -> MaskedConfig:
        assert isinstance(self.config.objective, MaskedConfig)
        return self.config.objective

    @cached_property
    def _facts(self) -> masking.Facts:
        return masking.facts(self.store.tokenizer)

    def arrays(self, ids: np.ndarray) -> Batch:
        """Return the rows (B, ...) of the samples `ids`."""
        return masking.masked(
            self.store.sources,
            ids,
            order=self.order,
            context=self.config.model.context,
            tokenizer_facts=self._facts,
            config=self._masked,
            seed=self.config.seed,
        )

    def blank(self, rows: int) -> Batch:
        """Return rows of zeros with the names, shapes and types of `arrays`."""
        context = self.config.model.context
        positions, places = (rows, context), (rows, masking.predictions(context, self._masked.rate))
        shapes = dict.fromkeys(("inputs_BT", "kinds_BT", "real_BT"), positions)
        shapes |= dict.fromkeys(("places_BP", "targets_BP"), places)
        integers = {name: np.zeros(shape, np.int32) for name, shape in shapes.items()}
        return integers | {"next_B": np.zeros(rows, np.int32), "weights_BP": np.zeros(places, np.float32)}

    def validation(self) -> Iterator[Batch]:
        """Yield the complete validation split as microbatches."""
        return masking.validation(
            self.store.validation,
            context=self.config.model.context,
            microbatch=self.config.batch.microbatch,
            tokenizer_facts=self._facts,
            config=self._masked,
        )

    def validation_places(self, number: int) -> dict[str, np.ndarray]:
        """Return the position in the stream that each weight of a validation batch measures."""
        context, rows = self.config.model.context, self.config.batch.microbatch
        start_B = (np.arange(rows) + number * rows) * context
        return {"weights_BP": start_B[:, None], "rows_B": start_B}

    def row_text(self, rows: Batch, row: int) -> str:
        """Decode a row of a batch to text, with its masks."""
        return self.store.tokenizer.decode(rows["inputs_BT"][row][rows["real_BT"][row] > 0])
