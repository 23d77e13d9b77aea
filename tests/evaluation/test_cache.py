"""Answers that are kept: read back bit for bit, whatever a crash left behind them."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from lmjax.evaluation import cache
from lmjax.evaluation.cache import Cache, key_of
from tests.evaluation import plain

KNOWN = {
    "one": (-0.1 - 0.2, True),
    "two": (float("-inf"), False),
    "three": 'é \u2028"\n\ud7ff\U0001f389',
    "four": (np.float32(-1.1).item(), False),
}


def test_what_is_kept_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "answers.jsonl"
    kept = Cache(path)
    assert kept.get("one") is None
    for key, value in KNOWN.items():
        kept.add({key: value})
    for again in (kept, Cache(path)):
        assert {key: again.get(key) for key in KNOWN} == KNOWN
    Cache(path).add({"two": (-1.0, True)})
    assert Cache(path).get("two") == (-1.0, True)  # the last holds


def test_a_torn_line_is_left_out_wherever_it_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    Cache(path).add({"whole": (-2.0, True)})
    size = path.stat().st_size
    Cache(path).add({"torn": (-1.25, True), "text": "abcé"})
    written = path.read_bytes()
    for stop in range(size, len(written)):
        path.write_bytes(written[:stop])
        torn = Cache(path)
        assert torn.get("whole") == (-2.0, True)
        assert torn.get("torn") in (None, (-1.25, True))
        assert torn.get("text") in (None, "abcé")
        if stop % 7 == 0:
            torn.add({"next": "x"})
            assert Cache(path).get("next") == "x"
            assert Cache(path).get("whole") == (-2.0, True)


def test_lines_of_something_else_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    Cache(path).add({"f": (-1.0, True)})
    path.write_bytes(
        b'12\n["a"]\n["b", 3, "x"]\n["c", []]\n\xff\xfe\n["e", null, null]\n{}\n' + path.read_bytes() + b'["g", "x"]\n'
    )
    found = Cache(path)
    assert [found.get(key) for key in "abcdefg"] == [None] * 5 + [(-1.0, True), None]


def test_a_flipped_bit_leaves_the_line_out(tmp_path: Path) -> None:
    """Without the hash, a changed digit would be another log-probability."""
    path = tmp_path / "answers.jsonl"
    responses = {"one": (-1.25, True), "two": "12"}
    Cache(path).add(responses)
    written = path.read_bytes()
    for place in range(0, len(written) * 8, 3):  # each bit of a byte, over three bytes
        damaged = bytearray(written)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        found = [Cache(path).get(key) for key in responses]
        assert found in ([None, None], [None, "12"], [(-1.25, True), None])


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = Cache(None)
    kept.add({"one": "x"})
    assert kept.get("one") == "x"
    assert not list(tmp_path.iterdir())


def test_keys_tell_apart_what_could_read_alike() -> None:
    parts = [((1, 2), (3,)), ((1,), (2, 3)), ("a", "b"), ("ab",), ("a", ["b"]), ("a", None), ("a", ("b", "c"), 3)]
    assert len({key_of(*part) for part in parts}) == len(parts)


def test_a_model_is_known_by_what_decides_its_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lm = plain.language_model(plain.FAMILIES["nnlm"])
    same = [
        lm,
        plain.language_model(plain.FAMILIES["nnlm"]),
        replace(lm, name="of another name", params=jax.device_put(lm.params)),
    ]
    paths = {cache.of_model(one).path for one in same}
    assert len(paths) == 1
    (path,) = paths
    assert path is not None
    assert path.is_relative_to(tmp_path / "lmjax")
    changed = jax.tree.map(np.array, lm.params)
    changed["head"]["bias"][3] += 1e-6
    others = [
        replace(lm, params=changed),
        replace(lm, first=1),
        replace(lm, stops=(4,)),
        replace(lm, model=type(lm.model)(replace(lm.model.config, dtype="bfloat16"))),
    ]
    assert len({cache.of_model(one).path for one in others} | paths) == 5
