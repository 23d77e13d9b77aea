"""The files of a store against its manifest: damaged and forged stores."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmjax.config import DataConfig, TokenizerConfig, UserError
from lmjax.data.store import manifest, preparation
from lmjax.data.store.store import Store


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"Document {i} of many." for i in range(400)))
    return DataConfig(files=(str(path),), tokenizer=TokenizerConfig("bytes"), cache=str(tmp_path / "cache"))


def flip_bits(path: Path) -> None:
    content, rnd = bytearray(path.read_bytes()), random.Random(0)
    for place in rnd.sample(range(len(content)), 200):
        content[place] ^= 1 << rnd.randrange(7)
    path.write_bytes(content)


def set_high_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1::2] = b"\xff" * len(content[1::2])
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("train-0.ids", flip_bits),
        ("train-0.ids", set_high_bytes),
        ("train-0.ids", lambda path: path.write_bytes(path.read_bytes()[:-2])),
        ("validation.ids", lambda path: path.write_bytes(path.read_bytes()[::-1])),
        ("train-0.starts", flip_bits),
        ("validation.starts", lambda path: path.unlink()),
        ("tokenizer.json", lambda path: path.write_text("")),
        ("tokenizer.json", flip_bits),
        ("manifest.json", flip_bits),
        ("manifest.json", lambda path: path.write_text("[" * 10_000)),
    ],
)  # fmt: skip
def test_damage_is_noticed_when_a_store_is_opened(config: DataConfig, name: str, change: Callable[[Path], Any]) -> None:
    folder = preparation.prepare(config).folder
    change(folder / name)
    with pytest.raises(UserError, match=f"prepared data do not match.*{name}.*delete the folder") as error:
        preparation.prepare(config)
    assert "\n" not in str(error.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_noticed(config: DataConfig, data: st.DataObject) -> None:
    folder = preparation.prepare(config).folder
    names = ["train-0.ids", "train-0.starts", "validation.ids", "validation.starts", "tokenizer.json"]
    path = folder / data.draw(st.sampled_from(names))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(
        content[:place] + bytes([content[place] ^ 1 << data.draw(st.integers(0, 7))]) + content[place + 1 :]
    )
    try:
        with pytest.raises(UserError, match="prepared data do not match"):
            Store.open(folder)
    finally:
        path.write_bytes(content)


def test_the_ids_of_a_large_store_are_checked_only_completely_and_while_reading(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = preparation.prepare(config)
    assert store.verified
    set_high_bytes(store.folder / "train-0.ids")
    monkeypatch.setattr(manifest, "LARGE", 1000)
    opened = preparation.prepare(config)
    assert not opened.verified
    with pytest.raises(UserError, match=r"train-0.ids' has the token id 65\d+, outside the vocabulary of 257"):
        opened.sources[0].checked(opened.sources[0].ids[:20])
    with pytest.raises(UserError, match="its sha256"):
        preparation.prepare(config, verify=True)
    flip_bits(store.folder / "train-0.starts")  # small files are always compared
    with pytest.raises(UserError, match=r"train-0\.starts': its sha256"):
        preparation.prepare(config)


def test_hashing_reports_its_progress(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    store = preparation.prepare(config)
    total = sum(entry["bytes"] for entry in store.manifest["files"].values())
    monkeypatch.setattr(manifest, "BLOCK", 1000)
    calls: list[tuple[int, int | None, str]] = []
    preparation.prepare(config, report=lambda *call: calls.append(call))
    assert calls[-1] == (total, total, "verifying the prepared data")
    assert len(calls) >= total // 1000


FORGERIES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "a folder above": (("files", "../../../secret"), {"bytes": 1, "sha256": "0" * 64}),
    "a folder below": (("files", "a/b"), {"bytes": 1, "sha256": "0" * 64}),
    "no name": (("files", ""), {"bytes": 1, "sha256": "0" * 64}),
    "a size that is too large": (("files", "train-0.ids", "bytes"), 10**30),
    "a size of another type": (("files", "train-0.ids", "bytes"), "12"),
    "a negative size": (("files", "train-0.ids", "bytes"), -1),
    "a hash of another type": (("files", "train-0.ids", "sha256"), ["0" * 64]),
    "files of another type": (("files",), []),
    "no tokenizer": (("files",), {}),
    "a stream above": (("streams", "../x"), {"tokens": 1, "documents": 1, "bytes": 1}),
    "a stream of another type": (("streams", "train-0"), "x"),
    "another number of tokens": (("streams", "train-0", "tokens"), 3),
    "a number of bytes that is a bool": (("streams", "train-0", "bytes"), True),
    "streams of another type": (("streams",), None),
    "a vocabulary of nothing": (("tokenizer", "vocab_size"), 0),
    "a vocabulary of another type": (("tokenizer", "vocab_size"), 1.5),
    "another vocabulary": (("tokenizer", "vocab_size"), 100_000),
    "no vocabulary": (("tokenizer",), "bytes"),
    "sources of another type": (("sources",), {"name": "a"}),
    "a source without documents": (("sources",), [{"name": "a"}]),
    "left-out files of another type": (("sources", 0, "left_out"), [1]),
    "dropped records of another type": (("sources", 0, "dropped"), "x"),
    "labels of another type": (("labels",), [1, 2]),
    "records of another type": (("records",), {"train": 1}),
    "another fingerprint": (("fingerprint",), "0" * 64),
    "another version": (("format",), 2),
    "unknown tokens of another type": (("streams", "train-0", "unknown"), -1),
    "compared texts of another type": (("compared",), {"pieces": "x"}),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_manifest_is_one_line(config: DataConfig, name: str) -> None:
    folder = preparation.prepare(config).folder
    content = json.loads((folder / "manifest.json").read_text())
    *path, last = FORGERIES[name][0]
    entry = content
    for key in path:
        entry = entry[key]
    entry[last] = copy.deepcopy(FORGERIES[name][1])
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"prepared data do not match their manifest: '.*manifest\.json': ") as error:
        preparation.prepare(config)
    assert "\n" not in str(error.value)


def test_offsets_outside_of_the_ids_are_refused(config: DataConfig) -> None:
    """The manifest of a forged store agrees with its files; the offsets still have to make sense."""
    folder = preparation.prepare(config).folder
    path = folder / "train-0.starts"
    for starts in ([5, 3], [0, 1 << 40], [-1, 2]):
        content = b"".join(start.to_bytes(8, "little", signed=True) for start in starts)
        path.write_bytes(content)
        forged = json.loads((folder / "manifest.json").read_text())
        forged["files"][path.name] = {"bytes": len(content), "sha256": manifest.file_sha256(path)}
        forged["streams"]["train-0"]["documents"] = 2
        forged["fingerprint"] = manifest.content_fingerprint(forged["files"])
        (folder / "manifest.json").write_text(json.dumps(forged))
        with pytest.raises(UserError, match=r"train-0\.starts': its offsets"):
            Store.open(folder)
