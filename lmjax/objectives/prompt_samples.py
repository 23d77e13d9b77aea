"""Samples that are prompts: what precedes the last answer of a conversation.

Shapes: B rows, P positions of a prompt.

Prompts are flush right: padding precedes them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from lmjax.config import ChatConfig, Config, UserError
from lmjax.config.policies import PolicyConfig
from lmjax.data.batches import chat, packing
from lmjax.data.batches.chat import Fitting
from lmjax.data.batches.packing import Rows
from lmjax.data.chat_tokens import chat_form
from lmjax.data.order.order import Order
from lmjax.data.sources.tables import SIDES, Side
from lmjax.data.store.facts import notes
from lmjax.data.store.store import Store
from lmjax.objectives.chat_samples import ChatSamples
from lmjax.objectives.samples import Batch

Question = tuple[list[int], list[int]]


@dataclass(frozen=True, eq=False)
class PromptSamples(ChatSamples):
    """Prompts, with the answers of the conversations that they are from.

    A sample is one prompt. `fitting` has the conversations whose prompt has room; its lengths are those of the prompts.
    """

    @classmethod
    def build(cls, config: Config, store: Store) -> Self:
        """Build the samples of a resolved configuration and its prepared data.

        Raises:
            UserError: No prompt of a side has room.
        """
        data, width = config.data, prompt_width(config)
        assert isinstance(data, ChatConfig)
        sides: dict[Side, Fitting] = {side: _fitting(store, side, width=width) for side in SIDES}
        for side, fitting in sides.items():
            if not len(fitting.records):
                raise UserError(
                    f"no prompt of the {side} split has an answer and at most {width} tokens (model.context minus "
                    "objective.answer_tokens); raise model.context, or lower objective.answer_tokens"
                )
        order = Order((len(sides["train"].records),), config.seed, exclude=data.exclude, shuffle=data.shuffle)
        return cls(config, store, order, sides)

    @classmethod
    def without_data(cls, config: Config) -> Self:
        """Build samples without data, of which only `blank` works."""
        nothing: Any = None
        return cls(config, nothing, nothing)

    def blank(self, rows: int) -> Batch:
        """Return rows of zeros with the names, shapes and types of `arrays`."""
        ids_BP, mask_BP = flush_right([[]] * rows, prompt_width(self.config))
        return {"ids_BP": ids_BP, "mask_BP": mask_BP, "record_B": np.zeros(rows, np.int32)}

    def arrays(self, ids: np.ndarray) -> Batch:
        """Return `ids_BP`, `mask_BP` and `record_B`, the numbers of the conversations."""
        return self._arrays("train", self.rows_of(ids).sequences)

    def validation(self) -> Iterator[Batch]:
        """Yield the held-out prompts as microbatches.

        The weight of a row that only fills the last one is 0.
        """
        records, rows = self.fitting["validation"].records, self.config.batch.microbatch
        for start in range(0, len(records), rows):
            here = start + np.arange(rows)
            batch = self._arrays("validation", records[np.minimum(here, len(records) - 1)])
            yield batch | {"weights_B": (here < len(records)).astype(np.float32)}

    def _arrays(self, side: Side, records: np.ndarray) -> Batch:
        prompts = [self.question(side, record)[0] for record in records.tolist()]
        ids_BP, mask_BP = flush_right(prompts, prompt_width(self.config))
        return {"ids_BP": ids_BP, "mask_BP": mask_BP, "record_B": records.astype(np.int32)}

    def rows_of(self, ids: np.ndarray) -> Rows:
        """Return the training conversation of each sample."""
        _, _, index = self.order.split_id(ids)
        return packing.single(self.fitting["train"].records[index])

    # ---- Questions -------------------------------------------------------------------------------------------------

    def question(self, side: Side, record: int) -> Question:
        """Return the ids of the prompt and of the answer of a conversation."""
        parts = self.control.last_answer(*chat.conversation(self.store, side, record))
        assert parts is not None
        return parts

    def columns(self, side: Side, record: int) -> dict[str, str]:
        """Return what a reward can read of a conversation: the texts `prompt` and `answer`."""
        decode = self.store.tokenizer.decode
        prompt, answer = self.question(side, record)
        return {"prompt": decode(prompt), "answer": decode(answer)}

    def questions(self) -> Iterator[Question]:
        """Yield (ids of the prompt, ids of the answer) of each validation conversation."""
        return (self.question("validation", record) for record in self.fitting["validation"].records.tolist())

    # ---- The data as a set -----------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Number of tokens in one epoch, with the places that the batch size counts."""
        return len(self.fitting["train"].records) * tokens_of_prompt(self.config)

    def describe(self) -> list[str]:
        """Describe the prepared data, one line per fact."""
        sides = zip(SIDES, ("training", "validation"), strict=True)
        counts = ", ".join(f"{len(self.fitting[side].records):,} for {label}" for side, label in sides)
        lines = [f"prompts: {counts}; at most {prompt_width(self.config)} tokens"]
        lines += [f"vocabulary: {self.store.tokenizer.vocab_size:,}; {self.control.describe()}", *notes(self.store)]
        dropped = {reason: count for reason, count in self.dropped().items() if count and reason != "bad"}
        if dropped:
            parts = ", ".join(f"{count:,} ({reason})" for reason, count in dropped.items())
            lines.append(f"WARNING: conversations left out: {parts}")
        return lines

    def row_text(self, rows: Batch, row: int) -> str:
        """Decode a row of a batch to text."""
        return self.store.tokenizer.decode(rows["ids_BP"][row][rows["mask_BP"][row]])


def prompt_width(config: Config) -> int:
    """Return the largest number of tokens of a prompt."""
    context = getattr(config.model, "context", 0)
    return context - _options(config).answer_tokens


def tokens_of_prompt(config: Config) -> int:
    """Return the number of tokens of a prompt in the batch size: those of all of its answers."""
    return _options(config).group * getattr(config.model, "context", 0)


def flush_right(prompts: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ids (int32) and a mask (bool), both (B, P), with padding before the prompts."""
    ids_BP, mask_BP = np.zeros((len(prompts), width), np.int32), np.zeros((len(prompts), width), bool)
    for row, ids in enumerate(prompts):
        ids_BP[row, width - len(ids) :], mask_BP[row, width - len(ids) :] = ids, True
    return ids_BP, mask_BP


def _fitting(store: Store, side: Side, *, width: int) -> Fitting:
    """Select the conversations that have an answer and whose prompt has room."""
    form, count = chat_form(store.tokenizer), len(store.streams[f"{side}-0"].starts)
    records, lengths, too_long = [], [], 0
    for record in range(count):
        parts = form.last_answer(*chat.conversation(store, side, record))
        if parts is not None and len(parts[0]) <= width:
            records.append(record)
            lengths.append(len(parts[0]))
        too_long += parts is not None and len(parts[0]) > width
    no_target = count - len(records) - too_long
    return Fitting(np.asarray(records, np.int64), np.asarray(lengths, np.int64), too_long=too_long, no_target=no_target)


def _options(config: Config) -> PolicyConfig:
    assert isinstance(config.objective, PolicyConfig)
    return config.objective
