"""Safetensors files: exactly what they hold, and nothing of one that is not what it says."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config import UserError
from lmjax.interop.huggingface import weights
from lmjax.interop.huggingface.folder import load
from tests.interop.folders import GIVEN, GPT2, attempt, put


def test_half_precision_is_widened_exactly(tmp_path: Path) -> None:
    state = GIVEN.weights("llama")
    bits = {name: x.view(np.uint32) >> 16 for name, x in state.items()}
    content, entries = b"", {}
    for i, (name, x) in enumerate(state.items()):
        kind, data = ("BF16", bits[name].astype("<u2")) if i % 2 else ("F16", x.astype("<f2"))
        entries[name] = {
            "dtype": kind,
            "shape": x.shape,
            "data_offsets": [len(content), len(content) + data.nbytes],
        }
        content += data.tobytes()
    header = json.dumps(entries).encode()
    (tmp_path / "half.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + content)
    read = weights.read(tmp_path / "half.safetensors")
    for i, (name, x) in enumerate(state.items()):
        expected = (bits[name] << 16).view(np.float32) if i % 2 else x.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(read[name], expected)
        assert read[name].dtype == np.float32
    assert read.size == sum(x.size for x in state.values())


def test_malformed_weights_are_always_refused(tmp_path: Path) -> None:
    """Any bytes, any cut, and any bits of the header turned give a UserError, or tensors that fill the file."""
    good = put(tmp_path / "in", GPT2, GIVEN.weights("gpt2")) / "model.safetensors"
    whole, path = good.read_bytes(), tmp_path / "bad.safetensors"
    header = 8 + int.from_bytes(whole[:8], "little")

    def offer(content: bytes) -> None:
        path.write_bytes(content)
        found, refused = attempt(weights.read, path)
        if found is None:
            assert str(path) in refused
            assert len(refused.splitlines()) == 1
        else:
            assert sum(found[name].nbytes for name in found) == len(whole) - header
            assert content[header:] == whole[header:]

    @settings(max_examples=150, deadline=None)
    @given(
        st.one_of(
            st.binary(max_size=100),
            st.binary(max_size=100).map(lambda text: struct.pack("<Q", len(text)) + text),
            st.integers(0, len(whole) - 1).map(lambda stop: whole[:stop]),
            st.binary(min_size=1, max_size=9).map(lambda more: whole + more),
        )
    )
    def whatever(content: bytes) -> None:
        if content != whole:
            offer(content)

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, header - 1), st.integers(1, 255)), min_size=1, max_size=3))
    def turned(bits: list[tuple[int, int]]) -> None:
        content = bytearray(whole)
        for place, mask in bits:
            content[place] ^= mask
        offer(bytes(content))

    whatever()
    turned()


def entry(kind: str, shape: list[Any], offsets: list[Any]) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry("F32", [2], [0, 8]), "b": entry("F32", [2], [4, 12])}, "'b' does not follow the previous tensor"),
        ({"a": entry("F32", [2], [0, 8]), "b": entry("F32", [1], [12, 16])}, "'b' does not follow the previous tensor"),
        ({"a": entry("F32", [3], [0, 12])}, "4 bytes at its end belong to no tensor"),
        ({"a": entry("F32", [2**31, 2**31], [0, 16])}, "is not a dtype, a shape and two offsets"),
        ({"a": entry("F32", [5], [0, 16])}, "'a' of shape [5] in F32 does not take [0, 16]"),
        ({"a": entry("F32", [5], [0, 20])}, "or is cut off"),
        ({"a": entry("F32", [-4], [0, 16])}, "is not a dtype, a shape and two offsets"),
        ({"a": entry("F32", [True, 4], [0, 16])}, "is not a dtype, a shape and two offsets"),
        ({"a": entry("F8_E4M3", [16], [0, 16])}, "'a' is stored as F8_E4M3; lmjax reads F64, "),
        ({"a": entry("F32", [4], [0, 16]) | {"more": 1}}, "is not a dtype, a shape and two offsets"),
        ([], "its header is not an object in JSON"),
        ({"a": {}}, "is not a dtype, a shape and two offsets"),
    ],
)
def test_every_claim_of_a_header_is_checked(header: Any, message: str, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(UserError) as caught:
        weights.read(tmp_path / "a.safetensors")
    assert message in str(caught.value)


def test_weights_that_are_not_safetensors_or_lie_elsewhere_are_refused(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", GPT2, GIVEN.weights("gpt2"))
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    with pytest.raises(UserError, match=r"has no weights: neither model\.safetensors nor"):
        load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_model\.bin, a format that can execute code; convert them"):
        load(folder)
    for table, message in (
        ({"wte.weight": "../in/part.safetensors"}, "which is not a .safetensors file in the same folder"),
        ({"wte.weight": "other.safetensors"}, "files of weights are missing (1 of 1), such as other.safetensors"),
        ({"wte.weight": "part.safetensors"}, "maps 'wte.weight' to part.safetensors, which has no such"),
        ({"transformer.wte.weight": "part.safetensors"}, "to part.safetensors, which has such a tensor"),
        ({"wte.weight": "a\0.safetensors"}, "which is not a .safetensors file in the same folder"),
        (["part.safetensors"], "has no 'weight_map' from tensors to files"),
    ):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
        with pytest.raises(UserError) as caught:
            load(folder)
        assert message in str(caught.value)
    with pytest.raises(UserError, match=r"is not a Hugging Face model: it has no config\.json"):
        load(tmp_path)
