"""Tasks that read windows of running text, and the first of them: predicting the next token.

Shapes: B rows, T positions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmjax.config import Config, DataConfig, UserError
from lmjax.data.batches.windows import begin_window, find_windows
from lmjax.data.order.order import Order
from lmjax.data.store.store import Store
from lmjax.objectives.objective import Batch, Objective

BASELINE_TOKENS = 20_000_000


def data_of(config: Config) -> DataConfig:
    """Return the data section of a configuration whose objective reads text."""
    assert isinstance(config.data, DataConfig)
    return config.data


def sample_order(config: Config, store: Store, *, streams: int = 0) -> Order:
    """Build the order of windows.

    With `streams` > 0, the number of windows of an epoch is a multiple of `streams`, and windows are not shuffled.
    """
    context, data = config.model.context, data_of(config)
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
class TextObjective(Objective):
    """Samples are windows of the store's sources."""

    def row_text(self, rows: Batch, row: int) -> str:
        """Return a row of a batch as text."""
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
        found = self.documents_of(sample)
        source, start = self._start(sample)
        offset = start - int(self.store.sources[source].starts[found[0][1]])
        last = f" to document {found[-1][1]}" if len(found) > 1 else ""
        return f"document {found[0][1]} from its token {offset:,}{last}"

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
