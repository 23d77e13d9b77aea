"""Samples that are pairs of answers to a prompt.

Shapes: B pairs, 2 answers (the preferred one first), T positions.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from lmjax.config import Config, DirectConfig, PreferenceConfig, RunError, UserError
from lmjax.data.batches import preferences
from lmjax.data.batches.buckets import Buckets, bucket_order, divide
from lmjax.data.batches.preferences import FittingPairs
from lmjax.data.chat_form import ChatForm
from lmjax.data.chat_tokens import chat_form
from lmjax.data.sources.tables import SIDES, Side
from lmjax.data.store.facts import notes
from lmjax.data.store.store import Store
from lmjax.models import registry
from lmjax.objectives import examples
from lmjax.objectives.chat_samples import microbatches
from lmjax.objectives.samples import Batch, Samples
from lmjax.optim.batch_plan import batch_plan

_REASONS = {
    "empty": "with an empty answer",
    "tie": "with equal answers",
    "duplicate": "that occurred before",
    "too_long": "longer than the context",
}


@dataclass(frozen=True, eq=False)
class PreferenceSamples(Samples):
    """Pairs in classes of length; a sample is a pair."""

    #: `FittingPairs` of each side of the split.
    fitting: dict[Side, FittingPairs] = dataclasses.field(default_factory=dict)
    #: The classes of length; members are numbers of pairs.
    buckets: Any = None
    #: For direct preference optimization: log-probabilities (pairs, 2) of all pairs of a side under the reference.
    reference: Mapping[Side, np.ndarray] | None = None

    rows_independent = False  # all rows of a batch are as long as the longest needs

    @classmethod
    def build(cls, config: Config, store: Store) -> Self:
        """Build the samples of a resolved configuration and its prepared data.

        Raises:
            UserError: No pair of a side fits into the context.
        """
        data, context = _data(config), config.model.context
        sides: dict[Side, FittingPairs] = {side: preferences.fitting(store, side, context=context) for side in SIDES}
        for side, fitting in sides.items():
            if not len(fitting.records):
                shortest = int(preferences.row_lengths(store, side).max(axis=1).min())
                raise UserError(
                    f"no pair of the {side} split fits into model.context={context} (the shortest has {shortest:,} "
                    "tokens); raise model.context"
                )
        train, held_out = (sides[side] for side in SIDES)
        buckets = divide(train.lengths[:, None], held_out.lengths[:, None], classes=data.buckets, context=context)
        members = tuple(train.records[part] for part in buckets.members)
        validation = tuple(held_out.records[part] for part in buckets.validation)
        buckets = dataclasses.replace(buckets, members=members, validation=validation)
        sizes = batch_plan(config.batch, config.train, registry.tokens(config.model)).sequences
        order = bucket_order(buckets, data, seed=config.seed, group=int(np.gcd.reduce(sizes)))
        return cls(config, store, order, sides, buckets)

    # ---- Batches -----------------------------------------------------------------------------------------------

    def arrays(self, ids: np.ndarray) -> Batch:
        """Return the rows (B, ...) of the samples `ids`."""
        classes, records = self.buckets.find(ids, self.order)
        return self.rows("train", records, width=self.buckets.widths[int(classes.max())][0])

    def rows(self, side: Side, records: np.ndarray, *, width: int) -> Batch:
        """Return the rows (B, ...) of pairs; for DPO with `reference_B2`.

        Raises:
            RunError: The log-probabilities of the reference are needed and are not known.
        """
        batch = preferences.arrays(self.store, side, records, width=width)
        if not isinstance(self.config.objective, DirectConfig):
            return batch
        if self.reference is None:
            raise RunError(
                "objective.family=dpo: the log-probabilities of the reference are not computed; give them to the "
                "objective with `with_reference`"
            )
        return batch | {"reference_B2": self.reference[side][records]}

    def blank(self, rows: int) -> Batch:
        """Return rows of zeros with the names, shapes and types of `arrays`."""
        batch = preferences.blank(rows, self.config.model.context)
        has_reference = isinstance(self.config.objective, DirectConfig)
        return batch | ({"reference_B2": np.zeros((rows, 2), np.float32)} if has_reference else {})

    def validation(self) -> Iterator[Batch]:
        """Yield the complete validation split as microbatches."""
        for records, width, is_real in self.validation_records():
            batch = self.rows("validation", records, width=width)
            batch["weights_B"] *= is_real
            yield batch

    def validation_records(self) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """Yield (numbers of the pairs, width, which pairs count) of each validation microbatch."""
        buckets: Buckets = self.buckets
        records = np.concatenate(buckets.validation)
        classes = np.repeat(np.arange(len(buckets.widths)), list(map(len, buckets.validation)))
        for here, is_real in microbatches(len(records), self.config.batch.microbatch):
            yield records[here], buckets.widths[classes[here[-1]]][0], is_real

    def share(self, rows: Batch) -> float:
        """Return the places of these rows as a share of a context; 2 for a full pair."""
        return 2 * rows["tokens_B2T"].shape[2] / self.config.model.context

    @property
    def epoch(self) -> int:
        """Number of tokens in one epoch as the batch size counts them: a pair is one context."""
        return sum(map(len, self.buckets.members)) * self.config.model.context

    def example(self) -> str:
        """Return a question of the validation pairs."""
        return examples.question(_data(self.config))

    # ---- The data as a set -------------------------------------------------------------------------------------

    @cached_property
    def control(self) -> ChatForm:
        """How turns become token ids."""
        return chat_form(self.store.tokenizer)

    def describe(self) -> list[str]:
        """Describe the prepared data, one line per fact."""
        store, buckets = self.store, self.buckets
        lines = []
        for side, label in zip(SIDES, ("training", "validation"), strict=True):
            records = self.fitting[side].records
            chosen, rejected = preferences.answer_lengths(store, side)[records].T
            lines.append(
                f"pairs: {len(records):,} for {label}; {chosen.mean():.1f} tokens in a preferred answer, "
                f"{rejected.mean():.1f} in the other; the longer one is preferred in {_longer_share(chosen, rejected)}"
            )
        parts = zip(buckets.members, buckets.widths, strict=False)
        classes = "; ".join(f"{len(part):,} of {width[0]}" for part, width in parts)
        lines.append(f"vocabulary: {store.tokenizer.vocab_size:,}; {self.control.describe()}")
        lines.append(f"classes of length: {classes} tokens; {buckets.padding:.1%} of all places are padding")
        lines += notes(store)
        dropped = self.dropped()
        counts = {reason: dropped[reason] for reason in _REASONS if dropped[reason]}  # `notes` has the bad ones
        if counts:
            lines.append(
                f"WARNING: left out: {', '.join(f'{count:,} pairs {_REASONS[r]}' for r, count in counts.items())}"
            )
        return lines

    def dropped(self) -> dict[str, int]:
        """Return the number of rows that are not used, by reason."""
        manifest = self.store.manifest
        records, bad = manifest["records"], sum(source.get("dropped", 0) for source in manifest["sources"])
        too_long = sum(fitting.too_long for fitting in self.fitting.values())
        return {"bad": bad, **{reason: records.get(reason, 0) for reason in _REASONS}, "too_long": too_long}

    def lost(self) -> dict[str, Any]:
        """Return what is left out, as fields of summary.json."""
        return super().lost() | {"dropped": self.dropped()}

    # ---- Texts and documents -----------------------------------------------------------------------------------

    def row_text(self, rows: Batch, row: int) -> str:
        """Decode a row of a batch to text."""
        decode = self.store.tokenizer.decode
        tokens_2T, last_2 = rows["tokens_B2T"][row], rows["last_B2"][row]
        return " | ".join(decode(ids[: last + 1]) for ids, last in zip(tokens_2T, last_2.tolist(), strict=True))

    def documents_of(self, sample: int) -> list[tuple[int, int]]:
        """Return (source, document) of every document that a sample reads."""
        return [(0, self._record(sample))]

    def place(self, sample: int) -> str:
        """Describe the documents of a sample."""
        return f"pair {self._record(sample)}"

    def beginning(self, source: int, document: int, count: int) -> str:
        """Return the first `count` tokens of a document as text."""
        prompt, chosen, _ = preferences.ids_of(self.store, "train", document)
        return self.store.tokenizer.decode(np.concatenate([prompt, chosen])[:count])

    def _record(self, sample: int) -> int:
        return int(self.buckets.find(np.asarray([sample]), self.order)[1][0])


def _longer_share(chosen: np.ndarray, rejected: np.ndarray) -> str:
    unequal = chosen != rejected
    return f"{(chosen > rejected)[unequal].mean():.0%}" if unequal.any() else "no pair (all are equally long)"


def _data(config: Config) -> PreferenceConfig:
    assert isinstance(config.data, PreferenceConfig)
    return config.data
