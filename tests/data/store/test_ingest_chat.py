"""Stores of conversations: their streams, their counts and their identity."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmjax.config import ChatConfig, TokenizerConfig, UserError
from lmjax.data.store import facts, ingest_records, preparation
from lmjax.data.store.store import Store

BYTES = TokenizerConfig("bytes", reserved=8)


def configuration(folder: Path, rows: list[Any], **options: Any) -> ChatConfig:
    path = folder / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return ChatConfig(**{"files": (str(path),), "tokenizer": BYTES, "cache": str(folder / "cache"), **options})


def texts(store: Store, side: str, *, learned: bool = False) -> list[str]:
    tokens, mask = store.streams[f"{side}-0"], store.streams[f"{side}-mask"]
    np.testing.assert_array_equal(tokens.starts, mask.starts)
    bounds = [*tokens.starts.tolist(), len(tokens.ids)]
    parts = [slice(a, b) for a, b in itertools.pairwise(bounds)]
    return [store.tokenizer.decode(tokens.ids[p][mask.ids[p] == 1] if learned else tokens.ids[p]) for p in parts]


def test_a_store_gives_conversations_and_targets_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_records, "BATCH", 100)  # many batches
    rows = [{"prompt": f"Frage {i}é", "completion": f"<|end|>{i * i}"} for i in range(100)]
    rows += [{"text": "plain"}, {"prompt": "", "completion": ""}]
    config = configuration(tmp_path, rows, validation_fraction=0.2)
    store = preparation.prepare(config, verify=True)
    counts = store.manifest["records"]
    assert (counts["train"] + counts["validation"], counts["skipped"], counts["empty"]) == (101, 1, 1)
    assert 5 < counts["validation"] < 40
    every = texts(store, "train") + texts(store, "validation")
    assert sorted(every) == sorted(
        [f"<|user|>Frage {i}é<|assistant|><|end|>{i * i}<|end|>" for i in range(100)]
        + ["<|endoftext|>plain<|endoftext|>"]
    )
    assert f"<|end|>{9 * 9}<|end|>" in texts(store, "train", learned=True) + texts(store, "validation", learned=True)
    size = sum(entry["bytes"] for entry in store.manifest["streams"].values())
    assert size == sum(len("".join(row.values()).encode()) for row in rows)
    assert not facts.notes(store)
    assert preparation.prepare(config).fingerprint == store.fingerprint


def test_a_chat_template_writes_the_conversations(tmp_path: Path) -> None:
    """A row that the template refuses is named, or counted; the template is a part of the identity."""
    pytest.importorskip("jinja2")
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ ('<|user|>' if m.role == 'user' else '<|assistant|>') + m.content + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    template = tmp_path / "own.jinja"
    template.write_text(source)
    rows: list[Any] = [{"prompt": f"{i}<|end|>", "completion": f"{i * i}"} for i in range(40)]
    rows.append({"messages": [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]})
    options: dict[str, Any] = {"validation_fraction": 0.2, "template": str(template)}
    with pytest.raises(UserError, match=r"a\.jsonl.*line 41.*: the chat template cannot be rendered: no system"):
        preparation.prepare(configuration(tmp_path, rows, **options))
    config = configuration(tmp_path, rows, on_bad_record="skip", **options)
    store = preparation.prepare(config)
    assert sorted(texts(store, "train") + texts(store, "validation")) == sorted(
        f"<|user|>{i}<|end|><|end|><|assistant|>{i * i}<|end|>" for i in range(40)
    )
    learned = texts(store, "train", learned=True) + texts(store, "validation", learned=True)
    assert sorted(learned) == sorted(f"{i * i}<|end|>" for i in range(40))
    end = store.tokenizer.id_of_token("<|end|>")
    assert sum(np.count_nonzero(store.streams[f"{side}-0"].ids == end) for side in ("train", "validation")) == 80
    assert store.manifest["sources"][0]["dropped"] == 1
    assert preparation.prepare(config).fingerprint == store.fingerprint
    template.write_text(source.replace("'<|user|>'", "'<|system|>'"))
    assert "<|system|>" in texts(preparation.prepare(config), "train")[0]


def test_a_damaged_mask_is_noticed(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "completion": "x"} for i in range(40)]
    config = configuration(tmp_path, rows, validation_fraction=0.2)
    store = preparation.prepare(config)
    path = store.folder / "train-mask.ids"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train-mask\.ids': its sha256 is not the manifest's"):
        preparation.prepare(config)
    with pytest.raises(UserError, match="token id 7"):
        store.streams["train-mask"].checked(np.asarray([7]))


def test_the_store_depends_on_what_is_learned_only(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "completion": "x"} for i in range(40)]
    config = configuration(tmp_path, rows, validation_fraction=0.2)
    first = preparation.prepare(config)
    for change in ({"packed": True}, {"too_long": "cut"}, {"buckets": 1}, {"shuffle": False}):
        assert preparation.prepare(dataclasses.replace(config, **change)).folder == first.folder
    everything = preparation.prepare(dataclasses.replace(config, targets="all"))
    assert everything.fingerprint != first.fingerprint
    np.testing.assert_array_equal(everything.streams["train-0"].ids, first.streams["train-0"].ids)
    without = preparation.prepare(dataclasses.replace(config, tokenizer=TokenizerConfig("bytes")))  # tokens appended
    assert without.tokenizer.vocab_size == 257 + 4


def test_counts_of_rows_that_are_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "completion": "x"} for i in range(40)]
    rows += [{"messages": [{"role": "user", "content": "a"}]}, {"prompt": 1, "completion": "x"}]  # type: ignore[list-item]
    config = configuration(tmp_path, rows, validation_fraction=0.2, on_bad_record="skip")
    store = preparation.prepare(config)
    assert store.manifest["records"]["no_target"] == 1
    assert store.manifest["sources"][0]["dropped"] == 1
    assert facts.store_facts(store) == {
        "unknown_tokens": {"training": 0, "validation": 0}, "skipped_records": 1, "dropped_records": 1
    }  # fmt: skip
    [line] = facts.notes(store)
    assert "left out 1 bad records" in line


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"prompt": "", "completion": ""}], {}, r"has no conversation \(left out: 1 without text\)"),
        (
            [{"prompt": "a", "completion": "b"}] * 3,
            {"validation_fraction": 1e-9},
            "no conversation for validation: raise",
        ),
        (
            [{"prompt": "a", "completion": "b"}] * 3,
            {"validation_fraction": 1 - 1e-9},
            "no conversation for train: lower",
        ),
    ],
)
def test_a_side_without_conversations_is_refused(
    tmp_path: Path, rows: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        preparation.prepare(configuration(tmp_path, rows, **options))
