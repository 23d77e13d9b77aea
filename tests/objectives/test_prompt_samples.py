"""Prompts: they are those of the source, in front of the answers that rewards read."""

from pathlib import Path

import numpy as np
import pytest

from lmjax.config import ChatConfig, Config, GRPOConfig, UserError
from lmjax.data.sources import chat
from lmjax.data.store import preparation
from lmjax.objectives import prompt_samples
from lmjax.objectives.prompt_samples import PromptSamples
from tests import small


def config(corpus: Path, **objective: int) -> Config:
    """Eight prompts with two answers each in four microbatches."""
    base = small.config("chat", corpus)
    assert isinstance(base.data, ChatConfig)
    return small.policy(base, GRPOConfig(group=2, **{"answer_tokens": 16, **objective}))


def samples_of(config: Config) -> PromptSamples:
    return PromptSamples.build(config, preparation.prepare(config.data))


def test_padding_precedes_the_prompts() -> None:
    ids_BP, mask_BP = prompt_samples.flush_right([[5, 6], [], [7, 8, 9]], 3)
    np.testing.assert_array_equal(ids_BP, [[0, 5, 6], [0, 0, 0], [7, 8, 9]])
    np.testing.assert_array_equal(mask_BP, [[False, True, True], [False] * 3, [True] * 3])


@pytest.mark.slow
def test_prompts_and_answers_are_those_of_the_source(corpus: Path) -> None:
    """The source is read again; the store and its control tokens are not used."""
    samples = samples_of(config(corpus))
    assert isinstance(samples.config.data, ChatConfig)
    for side in ("train", "validation"):
        rows = [found for of, found in chat.conversations(samples.config.data) if of == side]
        for record in samples.fitting[side].records[:20].tolist():
            question, answer = rows[record].turns
            columns = samples.columns(side, record)
            assert columns["answer"] == answer.text
            assert question.text in columns["prompt"]
            assert answer.text not in columns["prompt"] or answer.text in question.text


@pytest.mark.slow
def test_arrays_are_the_prompts_of_the_samples(corpus: Path) -> None:
    samples = samples_of(config(corpus))
    ids, _ = samples.order.take(3, 5)
    batch, blank = samples.arrays(ids), samples.blank(5)
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {n: (x.shape, x.dtype) for n, x in blank.items()}
    for row, record in enumerate(batch["record_B"].tolist()):
        prompt, _ = samples.question("train", record)
        np.testing.assert_array_equal(batch["ids_BP"][row][batch["mask_BP"][row]], prompt)
        assert samples.row_text(batch, row) == samples.columns("train", record)["prompt"]


@pytest.mark.slow
def test_validation_has_every_prompt_once(corpus: Path) -> None:
    samples = samples_of(config(corpus))
    records = [batch["record_B"][batch["weights_B"] > 0] for batch in samples.validation()]
    np.testing.assert_array_equal(np.concatenate(records), samples.fitting["validation"].records)


@pytest.mark.slow
def test_a_prompt_without_room_is_left_out_and_counted(corpus: Path) -> None:
    wide, narrow = samples_of(config(corpus)), samples_of(config(corpus, answer_tokens=34))
    width = prompt_samples.prompt_width(narrow.config)
    now_too_long = np.count_nonzero(wide.fitting["train"].lengths > width)
    assert now_too_long > 0
    assert narrow.fitting["train"].too_long == wide.fitting["train"].too_long + now_too_long
    assert narrow.fitting["train"].lengths.max() <= width
    with pytest.raises(UserError, match=r"no prompt of the train split .* at most 2 tokens"):
        samples_of(config(corpus, answer_tokens=62))
