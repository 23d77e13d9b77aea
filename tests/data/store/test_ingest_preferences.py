"""Prepared pairs: their streams, and what the manifest says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmjax.config import PreferenceConfig, TokenizerConfig, UserError
from lmjax.data.batches import preferences
from lmjax.data.chat_tokens import ChatTokens
from lmjax.data.store import ingest_preferences
from lmjax.data.store.preparation import prepare
from lmjax.data.store.store import Store

ROWS = [
    {"prompt": f"question {i}", "chosen": f"yes {i} <|end|>", "rejected": f"no, {i}", "margin": i / 3}
    for i in range(40)
]


def prepared(tmp_path: Path, *rows: Any, **settings: Any) -> Store:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config = PreferenceConfig(
        files=(str(path),), tokenizer=TokenizerConfig("bytes"), cache=str(tmp_path / "cache"), **settings
    )
    return prepare(config)


def test_streams_have_prompts_answers_and_margins(tmp_path: Path) -> None:
    store = prepared(tmp_path, *ROWS, ROWS[0], validation_fraction=0.2)
    control, found = ChatTokens(store.tokenizer), {}
    for side in ("train", "validation"):
        count = len(store.streams[f"{side}-prompt"].starts)
        margins = preferences.arrays(store, side, np.arange(count), width=64)["margins_B"]
        for record in range(count):
            prompt, chosen, rejected = preferences.ids_of(store, side, record)
            assert prompt.tolist()[-1:] == control.before("assistant")
            assert control.end not in chosen[:-1].tolist()  # the letters <|end|> of a text are no control token
            assert chosen[-1] == rejected[-1] == control.end
            texts = [store.tokenizer.decode(ids) for ids in (prompt[1:-1], chosen[:-1], rejected[:-1])]
            found[tuple(texts)] = float(margins[record])
    assert found == {(row["prompt"], row["chosen"], row["rejected"]): float(np.float32(row["margin"])) for row in ROWS}
    records = store.manifest["records"]
    assert records["train"] + records["validation"] == 40
    assert records["validation"] > 0
    assert (records["skipped"], records["duplicate"], records["tie"], records["empty"]) == (1, 1, 0, 0)


def test_margins_keep_their_bits() -> None:
    margins = np.asarray([0.0, -0.0, 1 / 3, -2.5e-30, 3.4e38], np.float32)
    ids = np.asarray([ingest_preferences.margin_ids(float(margin)) for margin in margins])
    assert ids.max() < 1 << 16
    np.testing.assert_array_equal(ingest_preferences.margins_of(ids).view(np.uint32), margins.view(np.uint32))


def test_a_side_without_pairs_is_refused_with_what_was_left_out(tmp_path: Path) -> None:
    tie = {"prompt": "q", "chosen": "a", "rejected": "a"}
    with pytest.raises(UserError, match=r"it has no pair \(left out: 1 with equal answers\)"):
        prepared(tmp_path, tie)
    with pytest.raises(UserError, match=r"no pair for (train|validation)"):
        prepared(tmp_path, *[{"prompt": "q", "chosen": f"a{i}", "rejected": "b"} for i in range(9)])
