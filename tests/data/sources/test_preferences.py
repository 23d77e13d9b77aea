"""Pairs of answers: forms of rows, what is left out, and the sides of the split."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lmjax.config import PreferenceConfig, UserError
from lmjax.data.sources import preferences, reviews
from lmjax.data.sources.chat_rows import Turn
from lmjax.data.sources.streams import Dropped

QUESTION = [{"role": "user", "content": "Where?"}]


def said(*contents: str) -> list[dict[str, str]]:
    """Messages of user and assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def written(tmp_path: Path, *rows: Any) -> tuple[str, ...]:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return (str(path),)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Where?", "chosen": "Here.", "rejected": "No."}, ["user: Where?"]),
        ({"prompt": QUESTION, "chosen": said("", "Here.")[1:], "rejected": said("", "No.")[1:]}, ["user: Where?"]),
        ({"prompt": "Where?", "chosen": said("Where?", "Here."), "rejected": "No."}, ["user: Where?"]),
        ({"chosen": said("Where?", "Here."), "rejected": said("Where?", "No.")}, ["user: Where?"]),
        (
            {"chosen": said("A", "B", "Where?", "Here."), "rejected": said("A", "B", "Where?", "No.")},
            ["user: A", "assistant: B", "user: Where?"],
        ),
        (
            {"chosen": "\n\nHuman: Where?\n\nAssistant: Here.", "rejected": "\n\nHuman: Where?\n\nAssistant: No."},
            ["user: Where?"],
        ),
        ({"chosen": "It is Here.", "rejected": "It is No."}, ["user: It is"]),
        ({"prompt": None, "chosen": "Hearts Here.", "rejected": "Hearts No."}, ["user: Hearts"]),
    ],
)
def test_every_form_of_a_row_is_the_same_pair(row: dict[str, Any], prompt: list[str]) -> None:
    pair = preferences.pair_of(row, "row 1")
    assert [f"{turn.role}: {turn.text}" for turn in pair.prompt] == prompt
    assert not any(turn.learn for turn in pair.prompt)
    assert (pair.chosen, pair.rejected, pair.margin) == ("Here.", "No.", 0.0)


def test_a_common_beginning_divides_no_word() -> None:
    pair = preferences.pair_of({"chosen": "Rain in Spain", "rejected": "Rain in Spoleto"}, "row 1")
    assert pair.prompt == (Turn("user", "Rain in", False),)
    assert (pair.chosen, pair.rejected) == ("Spain", "Spoleto")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "row 1 is not an object with columns but list"),
        ({"chosen": "a", "reject": "b"}, "no column 'rejected', but 'chosen', 'reject'"),
        ({"chosen": "a", "rejected": None}, "no value in the column 'rejected', but null; leave the row out"),
        ({"chosen": "yes", "rejected": "no"}, "no common beginning; add the prompt"),
        ({"chosen": said("A", "B"), "rejected": said("C", "B")}, "differ before their last messages"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"}, "differ before their"),
        ({"chosen": "x\n\nHuman: a\n\nAssistant: b", "rejected": "x\n\nHuman: a\n\nAssistant: c"}, "first speaker"),
        (
            {"prompt": "q", "chosen": said("A", "B"), "rejected": "b"},
            "not one answer of the assistant but user, assist",
        ),
        ({"prompt": "q", "chosen": said("A"), "rejected": "b"}, "not one answer of the assistant but user"),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, "the column 'chosen' is not text but int"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "much"}, "'margin' is 'much', which is no number"),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1e300},
            r"'margin' is '1e\+300', which is no",
        ),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 10**400}, "which is no number from -1,000,000"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "nan"}, "'margin' is 'nan', which is no number"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": True}, "'margin' is 'True', which is no number"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": float("inf")}, "'margin' is 'inf'"),
    ],
)
def test_a_malformed_row_is_refused_with_its_reason(row: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        preferences.pair_of(row, "row 1")


def test_cells_of_a_csv_file_are_margins(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected,margin\nq,a,b,0.5\nq,c,d,\nq,e,f,-2\n")
    found = [pair.margin for _, pair in preferences.pairs(PreferenceConfig(files=(str(path),)))]
    assert found == [0.5, 0.0, -2.0]


def test_ties_duplicates_and_empty_answers_are_left_out_and_counted(tmp_path: Path) -> None:
    first = {"prompt": "q", "chosen": "a", "rejected": "b"}
    rows = [
        first,
        first,
        first | {"chosen": "b ", "rejected": "b"},
        first | {"chosen": " "},
        first | {"chosen": "b", "rejected": "a"},  # another label of the same pair stays
        first | {"prompt": "other"},
    ]
    left_out: Counter[preferences.Reason] = Counter()
    config = PreferenceConfig(files=written(tmp_path, *rows))
    kept = [pair for _, pair in preferences.pairs(config, left_out=left_out)]
    assert [(pair.prompt[0].text, pair.chosen) for pair in kept] == [("q", "a"), ("q", "b"), ("other", "a")]
    assert left_out == {"duplicate": 1, "tie": 1, "empty": 1}


def test_bad_rows_are_errors_or_are_counted(tmp_path: Path) -> None:
    config = PreferenceConfig(files=written(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b"}, {"text": "c"}))
    with pytest.raises(UserError, match=r"line 2 has no column 'chosen', but 'text'.*on_bad_record=skip"):
        list(preferences.pairs(config))
    dropped = Dropped()
    skipping = PreferenceConfig(files=config.files, on_bad_record="skip")
    assert len(list(preferences.pairs(skipping, dropped=dropped))) == 1
    assert dropped.count == 1


def test_all_pairs_of_a_prompt_are_on_one_side() -> None:
    sides: dict[str, set[str]] = {}
    for side, pair in preferences.pairs(PreferenceConfig(limit=300, validation_fraction=0.2)):
        sides.setdefault(pair.prompt[0].text, set()).add(side)
    assert all(len(of_prompt) == 1 for of_prompt in sides.values())
    assert {side for of_prompt in sides.values() for side in of_prompt} == {"train", "validation"}


def test_generated_pairs_are_those_of_the_source() -> None:
    expected = [(row["prompt"], row["chosen"], row["rejected"]) for row, _ in reviews.pairs(50)]
    pairs = [pair for _, pair in preferences.pairs(PreferenceConfig(validation_fraction=0.2))][:50]
    assert [(pair.prompt[0].text, pair.chosen, pair.rejected) for pair in pairs] == expected


def test_the_fingerprint_tells_data_apart(tmp_path: Path) -> None:
    files = written(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b"})
    configs = [
        PreferenceConfig(),
        PreferenceConfig(limit=3),
        PreferenceConfig(validation_fraction=0.5),
        PreferenceConfig(files=files),
        PreferenceConfig(files=files, validation_files=files),
    ]
    prints = [json.dumps(preferences.fingerprint(config)) for config in configs]
    assert len(set(prints)) == len(prints)
    with pytest.raises(
        UserError, match=r"validation_files need data\.files: the source 'reviews' has validation pairs"
    ):
        preferences.fingerprint(PreferenceConfig(validation_files=files))
    assert "is in data.files and in data.validation_files" in preferences.repeated(configs[-1])[0]
    assert preferences.name(configs[0]) == "reviews"
