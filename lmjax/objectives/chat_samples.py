"""Samples that are conversations: one in each row, or several in a packed row.

Shapes: B rows, T positions.
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from lmjax.config import ChatConfig, Config, UserError
from lmjax.data.batches import chat, packing
from lmjax.data.batches.buckets import Buckets, bucket_order, divide
from lmjax.data.batches.chat import Fitting
from lmjax.data.batches.packing import Rows
from lmjax.data.batches.records import spans
from lmjax.data.chat_form import ChatForm
from lmjax.data.chat_tokens import chat_form
from lmjax.data.order.order import Order
from lmjax.data.sources.tables import SIDES, Side
from lmjax.data.store.facts import notes
from lmjax.data.store.store import Store
from lmjax.models import registry
from lmjax.objectives import examples
from lmjax.objectives.samples import Batch, Samples
from lmjax.optim.batch_plan import batch_plan

_REASONS = {
    "empty": "without text",
    "no_target": "without an answer to learn",
    "too_long": "longer than the context",
}


@dataclass(frozen=True, eq=False)
class ChatSamples(Samples):
    """Conversations; a subclass decides how they share rows."""

    #: `Fitting` of each side of the split.
    fitting: dict[Side, Fitting] = dataclasses.field(default_factory=dict)

    @classmethod
    def build(cls, config: Config, store: Store) -> Self:
        """Build the samples of a resolved configuration and its prepared data.

        Raises:
            UserError: No conversation of a side fits into the context.
        """
        data, context = _data(config), config.model.context
        sides = {side: chat.fitting(store, side, context=context, too_long=data.too_long) for side in SIDES}
        for side, fitting in sides.items():
            if not len(fitting.records):
                longest = int(np.diff(store.streams[f"{side}-0"].starts).max(initial=0)) - 1
                raise UserError(
                    f"no conversation of the {side} split fits into model.context={context} (the longest have about "
                    f"{longest:,} tokens); raise model.context, or set data.too_long=cut"
                )
        kind: Any = _kind(config)
        return kind.of(config, store, sides)

    @classmethod
    def without_data(cls, config: Config) -> Self:
        """Build samples without data, of which only `blank` works."""
        nothing: Any = None
        kind: Any = _kind(config)
        return kind(config, nothing, nothing)

    def blank(self, rows: int) -> Batch:
        """Return rows of zeros with the names, shapes and types of `arrays`."""
        return chat.blank(rows, self.config.model.context, packed=_data(self.config).packed)

    @abstractmethod
    def rows_of(self, ids: np.ndarray) -> Rows:
        """Return the training conversations of each sample."""

    @cached_property
    def control(self) -> ChatForm:
        """How the tokenizer writes conversations."""
        return chat_form(self.store.tokenizer)

    def example(self) -> str:
        """Return a question of the validation conversations."""
        return examples.question(_data(self.config))

    # ---- The data as a set -------------------------------------------------------------------------------------

    def describe(self) -> list[str]:
        """Describe the prepared data, one line per fact."""
        store, lines = self.store, []
        for side, label in zip(SIDES, ("training", "validation"), strict=True):
            fitting, mask = self.fitting[side], store.streams[f"{side}-mask"]
            share = np.count_nonzero(mask.ids) / max(1, len(mask.ids))
            lines.append(
                f"conversations: {len(fitting.records):,} for {label} with {int(fitting.lengths.sum()):,} tokens; "
                f"{share:.0%} of the tokens are targets"
            )
        lines.append(f"vocabulary: {store.tokenizer.vocab_size:,}; {self.control.describe()}")
        lines += [*notes(store), *self._layout()]
        dropped = self.dropped()
        counts = {reason: dropped[reason] for reason in _REASONS if dropped[reason]}  # `notes` has the bad ones
        if counts:
            parts = ", ".join(f"{count:,} {_REASONS[reason]}" for reason, count in counts.items())
            lines.append(f"WARNING: left out of the conversations: {parts}")
        if cut := sum(self.truncated().values()):
            lines.append(f"cut: {cut:,} conversations are longer than model.context={self.config.model.context}")
        return lines

    def _layout(self) -> list[str]:
        """Describe how conversations share rows."""
        return []

    def dropped(self) -> dict[str, int]:
        """Return the number of rows that are not used, by reason."""
        manifest = self.store.manifest
        records, bad = manifest["records"], sum(source.get("dropped", 0) for source in manifest["sources"])
        sides = self.fitting.values()
        return {
            "bad": bad,
            "empty": records["empty"],
            "no_target": records["no_target"] + sum(fitting.no_target for fitting in sides),
            "too_long": sum(fitting.too_long for fitting in sides),
        }

    def lost(self) -> dict[str, Any]:
        """Return what is left out or cut, as fields of summary.json."""
        return super().lost() | {"dropped": self.dropped()}

    def truncated(self) -> dict[str, int]:
        """Return the number of conversations of which only the beginning is used, by side."""
        return {f"{side}_conversations": fitting.cut for side, fitting in self.fitting.items()}

    # ---- Texts and documents -----------------------------------------------------------------------------------

    def row_text(self, rows: Batch, row: int) -> str:
        """Decode a row of a batch to text."""
        inputs, targets = rows["inputs_BT"][row], rows["targets_BT"][row]
        used = np.flatnonzero((inputs != chat.fill_id(self.store)) | (rows["weights_BT"][row] > 0))
        last = int(used[-1]) + 1 if len(used) else 0
        return self.store.tokenizer.decode(np.append(inputs[:last], targets[max(last - 1, 0)]))

    def documents_of(self, sample: int) -> list[tuple[int, int]]:
        """Return (source, document) of every document that a sample reads."""
        return [(0, record) for record in self.rows_of(np.asarray([sample])).sequences.tolist()]

    def place(self, sample: int) -> str:
        """Describe the documents of a sample."""
        records = [str(record) for _, record in self.documents_of(sample)]
        return f"conversation{'s' * (len(records) > 1)} {', '.join(records[:8])}{', ...' * (len(records) > 8)}"

    def beginning(self, source: int, document: int, count: int) -> str:
        """Return the first `count` tokens of a document as text."""
        return self.store.tokenizer.decode(self.conversation("train", document)[:count])

    def conversation(self, side: Side, record: int) -> np.ndarray:
        """Return the ids of a conversation."""
        tokens = self.store.streams[f"{side}-0"]
        start_B, size_B = spans(tokens, np.asarray([record]))
        return np.asarray(tokens.checked(tokens.ids[int(start_B[0]) : int(start_B[0] + size_B[0])]))

    def questions(self) -> Iterator[tuple[list[int], list[int]]]:
        """Yield (ids before, ids of) the last answer of each validation conversation.

        Conversations without an answer (plain text), and those that the context cuts, are left out.
        """
        context = self.config.model.context
        for record in self.fitting["validation"].records.tolist():
            ids, mask = chat.conversation(self.store, "validation", record)
            parts = self.control.last_answer(ids, mask)
            if parts is not None and len(ids) - 1 <= context:
                yield parts


@dataclass(frozen=True, eq=False)
class PaddedChat(ChatSamples):
    """One conversation in each row, in classes of length."""

    #: The classes of length; members are numbers of conversations.
    buckets: Any = None

    rows_independent = False  # all rows of a batch are as long as the longest needs

    @classmethod
    def of(cls, config: Config, store: Store, sides: dict[Side, Fitting]) -> Self:
        """Build the samples of the conversations that fit."""
        data, (train, held_out) = _data(config), (sides[side] for side in SIDES)
        lengths, held_out_lengths = train.lengths[:, None], held_out.lengths[:, None]
        buckets = divide(lengths, held_out_lengths, classes=data.buckets, context=config.model.context)
        members = tuple(train.records[part] for part in buckets.members)
        validation = tuple(held_out.records[part] for part in buckets.validation)
        buckets = dataclasses.replace(buckets, members=members, validation=validation)
        sizes = batch_plan(config.batch, config.train, registry.tokens(config.model)).sequences
        order = bucket_order(buckets, data, seed=config.seed, group=int(np.gcd.reduce(sizes)))
        return cls(config, store, order, sides, buckets)

    def rows_of(self, ids: np.ndarray) -> Rows:
        """Return the training conversation of each sample."""
        return packing.single(self.buckets.find(ids, self.order)[1])

    def arrays(self, ids: np.ndarray) -> Batch:
        """Return the rows (B, ...) of the samples `ids`."""
        classes, records = self.buckets.find(ids, self.order)
        width = self.buckets.widths[int(classes.max())][0]
        return chat.arrays(self.store, "train", packing.single(records), width=width, packed=False)

    def validation(self) -> Iterator[Batch]:
        """Yield the complete validation split as microbatches."""
        buckets: Buckets = self.buckets
        records = np.concatenate(buckets.validation)
        classes = np.repeat(np.arange(len(buckets.widths)), list(map(len, buckets.validation)))
        for here, is_real in microbatches(len(records), self.config.batch.microbatch):
            width = buckets.widths[classes[here[-1]]][0]
            batch = chat.arrays(self.store, "validation", packing.single(records[here]), width=width, packed=False)
            batch["weights_BT"] *= is_real[:, None]
            yield batch

    def share(self, rows: Batch) -> float:
        """Return the share of a full-length sample's tokens that these rows have places for."""
        return rows["inputs_BT"].shape[1] / self.config.model.context

    @property
    def epoch(self) -> int:
        """Number of tokens in one epoch, with the places that the batch size counts."""
        return sum(map(len, self.buckets.members)) * self.config.model.context

    def _layout(self) -> list[str]:
        buckets: Buckets = self.buckets
        parts = zip(buckets.members, buckets.widths, strict=False)
        classes = "; ".join(f"{len(part):,} of {width[0]}" for part, width in parts)
        return [f"classes of length: {classes} tokens; {buckets.padding:.1%} of all places are padding"]


@dataclass(frozen=True, eq=False)
class PackedChat(ChatSamples):
    """Several conversations in each row, each a segment of its own."""

    #: Numbers of the conversations of each row, by side.
    rows: dict[Side, Rows] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, config: Config, store: Store, sides: dict[Side, Fitting]) -> Self:
        """Build the samples of the conversations that fit."""
        data, rows = _data(config), {}
        for side, fitting in sides.items():
            packed = packing.pack(fitting.lengths, config.model.context)
            rows[side] = Rows(fitting.records[packed.sequences], packed.first)
        order = Order((len(rows["train"]),), config.seed, exclude=data.exclude, shuffle=data.shuffle)
        return cls(config, store, order, sides, rows)

    def rows_of(self, ids: np.ndarray) -> Rows:
        """Return the training conversations of each sample."""
        _, _, row = self.order.split_id(ids)
        return self.rows["train"].take(row)

    def arrays(self, ids: np.ndarray) -> Batch:
        """Return the rows (B, ...) of the samples `ids`."""
        return chat.arrays(self.store, "train", self.rows_of(ids), width=self.config.model.context, packed=True)

    def validation(self) -> Iterator[Batch]:
        """Yield the complete validation split as microbatches."""
        rows, width = self.rows["validation"], self.config.model.context
        for here, is_real in microbatches(len(rows), self.config.batch.microbatch):
            batch = chat.arrays(self.store, "validation", rows.take(here), width=width, packed=True)
            batch["weights_BT"] *= is_real[:, None]
            yield batch

    @property
    def epoch(self) -> int:
        """Number of tokens in one epoch, with the places that the batch size counts."""
        return len(self.rows["train"]) * self.config.model.context

    def _layout(self) -> list[str]:
        rows, fitting = self.rows["train"], self.fitting["train"]
        padding = 1 - int(fitting.lengths.sum()) / self.epoch
        most = int(np.diff(rows.first).max())
        return [f"packed: {len(rows):,} rows of at most {most} conversations; {padding:.1%} of all places are padding"]


def microbatches(count: int, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows of each microbatch, and which of them do not only fill the last one."""
    for start in range(0, count, rows):
        here = start + np.arange(rows)
        yield np.minimum(here, count - 1), here < count


def _data(config: Config) -> ChatConfig:
    assert isinstance(config.data, ChatConfig)
    return config.data


def _kind(config: Config) -> type[ChatSamples]:
    return PackedChat if _data(config).packed else PaddedChat
