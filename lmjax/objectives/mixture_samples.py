"""The validation split of a mixture by source.

The split holds documents of all sources in proportion to their size, whatever their weights. Shapes: B rows.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lmjax.config import SourceConfig
from lmjax.data.batches.windows import Batch
from lmjax.data.store.store import Store


def source_labels(mixture: Sequence[SourceConfig]) -> tuple[str, ...]:
    """Return a short, distinct label for each source.

    It is the name of the first file, or that of the source.
    """
    names = [Path(source.files[0]).name if source.files else source.source for source in mixture]
    return tuple(name if names.count(name) == 1 else f"{name}#{number}" for number, name in enumerate(names))


def parts_by_source(
    store: Store, labels: Sequence[str], rows: Batch, *, places: Mapping[str, np.ndarray]
) -> dict[str, Batch]:
    """Return a validation batch once for each source, with only the weights of that source.

    Args:
        store: The prepared data.
        labels: Label of each source, in the order of the store.
        rows: The batch.
        places: Position in the validation stream that each weight measures, by the name of the weights' array.

    Returns:
        A batch by label. If all weights are of one source, its batch is `rows` itself. Empty if the store does not tell
        the sources of the validation split apart.
    """
    firsts = store.validation_sources
    if firsts is None:
        return {}
    source_of = {
        name: np.broadcast_to(np.searchsorted(firsts, place, side="right") - 1, rows[name].shape)
        for name, place in places.items()
        if name in rows
    }
    present = sorted({int(source) for name, of in source_of.items() for source in np.unique(of[rows[name] > 0])})
    if len(present) == 1:
        return {labels[present[0]]: rows}
    return {
        labels[source]: rows | {name: rows[name] * (of == source) for name, of in source_of.items()}
        for source in present
    }


def describe_mixture(store: Store, shares: Mapping[str, float], *, limits: Mapping[str, int]) -> list[str]:
    """Describe the shares of the sources, and sources that are not measured.

    Args:
        store: The prepared data.
        shares: Share of each source in the training, by its label, in the order of the store.
        limits: Maximum number of validation tokens (0: all) that are read, by the setting that limits them.
    """
    if not shares:
        return []
    firsts, size = store.validation_sources, len(store.validation.ids)
    if firsts is None:
        return ["mixture: the prepared data do not tell which source a validation document is from: no loss by source"]
    tokens = np.diff([*firsts, size])
    parts = [f"{name} {shares[name]:.1%} / {n / size:.1%}" for name, n in zip(shares, tokens, strict=True)]
    lines = [f"mixture, share of training / of validation: {', '.join(parts)}"]
    for key, limit in limits.items():
        beyond = [name for name, first, n in zip(shares, firsts, tokens, strict=True) if 0 < limit <= first and n]
        if beyond:
            lines.append(f"{key} measures nothing of {', '.join(beyond)}: raise it")
    return lines
