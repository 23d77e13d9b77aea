"""Reader of safetensors files; every entry of a header is validated before use.

A file is 8 bytes (the header's length, little endian), the header (JSON: name -> dtype, shape, data_offsets), and the
data, which the tensors fill without gaps or overlaps.

`safetensors.safe_open` is not used: it accepts a tensor that is listed twice and unknown fields of an entry, does not
name the tensor that a file contradicts, and cannot return bfloat16 as NumPy arrays.
"""

import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.config import UserError
from lmjax.config.json_text import parse_json
from lmjax.config.regular_files import open_regular, read_regular
from lmjax.interop.huggingface import hub

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_LARGEST_HEADER = 100_000_000  # bytes, the format's own limit
_LONGEST_NAME = 1000  # characters
_LARGEST_JSON = 1 << 26  # bytes of a JSON file of a folder
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # the upper half of a float32
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


@dataclass(frozen=True, eq=False)
class _Stored:
    kind: str
    shape: tuple[int, ...]
    data: memoryview

    def array(self) -> np.ndarray:
        raw = np.frombuffer(self.data, np.uint8).view(_DTYPES[self.kind]).reshape(self.shape)
        if self.kind == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # a float64 may overflow to infinity
            return raw.astype(np.float32 if self.kind.startswith("F") else raw.dtype)


class Weights(Mapping[str, np.ndarray]):
    """Tensors by name, each read on access; floating-point numbers are converted to float32."""

    def __init__(self, stored: dict[str, _Stored]) -> None:
        self._stored = stored

    def __getitem__(self, name: str) -> np.ndarray:
        return self._stored[name].array()

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def size(self) -> int:
        """The total number of values."""
        return sum(math.prod(tensor.shape) for tensor in self._stored.values())


def finite(name: str, x: np.ndarray) -> np.ndarray:
    """Return a tensor of weights.

    Raises:
        UserError: It has values that are not finite.
    """
    wrong = x.size - int(np.count_nonzero(np.isfinite(x)))
    if wrong:
        raise UserError(
            f"tensor '{name}' has {wrong:,} of {x.size:,} values that are not finite in float32 (NaN or infinity): the "
            "file is damaged, or was written in a dtype that overflowed; export the weights again"
        )
    return x


def read(path: Path) -> Weights:
    """Read a .safetensors file, or a folder with model.safetensors or with indexed shards.

    Raises:
        UserError: There are no weights, or a file contradicts its header.
    """
    if not path.is_dir():
        return Weights(_file(path))
    if (path / WHOLE).is_file():
        return Weights(_file(path / WHOLE))
    if (path / INDEX).is_file():
        return Weights(_shards(path / INDEX))
    hub.refuse_incomplete(path, (WHOLE, INDEX))
    others = sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if others:
        raise UserError(
            f"{path} has its weights in {others[0]}, a format that can execute code; convert them to "
            f"{WHOLE} first, for instance with save_pretrained of transformers"
        )
    raise UserError(f"{path} has no weights: neither {WHOLE} nor {INDEX}")


def _shards(path: Path) -> dict[str, _Stored]:
    table = json_object(path).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
        raise UserError(f"{path} has no 'weight_map' from tensors to files")
    files: dict[str, dict[str, _Stored]] = {}
    names = sorted(set(table.values()))
    for file in names:
        if Path(file).name != file or not file.endswith(".safetensors") or not file.isprintable():
            raise UserError(f"{path} names {file!r:.200}, which is not a .safetensors file in the same folder")
    hub.refuse_incomplete(path.parent, names)
    missing = [file for file in names if not (path.parent / file).is_file()]
    if missing:
        raise UserError(
            f"{path}: files of weights are missing ({len(missing)} of {len(names)}), such as {missing[0]}; copy or "
            "download the complete model"
        )
    for file in names:
        files[file] = _file(path.parent / file)
    for name, file in table.items():
        if name not in files[file]:
            raise UserError(f"{path} maps {name!r:.200} to {file}, which has no such tensor")
    for file, tensors in files.items():
        unmapped = next((name for name in tensors if table.get(name) != file), None)
        if unmapped is not None:
            raise UserError(f"{path} does not map '{unmapped}' to {file}, which has such a tensor")
    return {name: files[file][name] for name, file in table.items()}


def _file(path: Path) -> dict[str, _Stored]:
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            if size < 8:
                raise UserError(f"{path} cannot be read: it has {size} bytes, not even the length of a header")
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    length = int.from_bytes(content[:8], "little")
    if length > min(size - 8, _LARGEST_HEADER):
        raise UserError(f"{path} cannot be read: its header would have {length} bytes, the file has {size}")
    header = _object(bytes(content[8 : 8 + length]), f"{path} cannot be read: its header", _LARGEST_HEADER)
    header.pop("__metadata__", None)
    bad = next((name for name in header if not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME), None)
    if bad is not None:
        raise UserError(f"{path} cannot be read: {bad!r:.80} is not a valid name of a tensor")
    data, end = content[8 + length :], 0
    spans = sorted((*_span(path, name, entry, size), name) for name, entry in header.items())
    stored = {}
    for start, stop, name in spans:
        if start != end or stop > len(data):
            raise UserError(f"{path} cannot be read: '{name}' does not follow the previous tensor, or is cut off")
        entry, end = header[name], stop
        stored[name] = _Stored(entry["dtype"], tuple(entry["shape"]), data[start:stop])
    if end != len(data):
        raise UserError(f"{path} cannot be read: {len(data) - end} bytes at its end belong to no tensor")
    return stored


def _span(path: Path, name: str, entry: Any, size: int) -> tuple[int, int]:
    """The byte range of a tensor; a UserError if its entry is invalid or inconsistent."""
    wrong = UserError(f"{path} cannot be read: the entry of '{name}' is not a dtype, a shape and two offsets")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or not all(isinstance(numbers, list) for numbers in (shape, offsets)):
        raise wrong
    if len(offsets) != 2 or not all(type(n) is int and 0 <= n <= size for n in (*shape, *offsets)):
        raise wrong
    if kind not in _DTYPES:
        raise UserError(f"{path}: '{name}' is stored as {kind}; lmjax reads {', '.join(_DTYPES)}")
    if len(shape) > 8 or offsets[1] - offsets[0] != math.prod(shape) * np.dtype(_DTYPES[kind]).itemsize:
        raise UserError(f"{path} cannot be read: '{name}' of shape {shape} in {kind} does not take {offsets}")
    return offsets[0], offsets[1]


def json_object(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        UserError: The file cannot be read, or is not a JSON object.
    """
    try:
        text = read_regular(path, largest=_LARGEST_JSON)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return _object(text, str(path), _LARGEST_JSON)


def _object(text: bytes, what: str, largest: int) -> dict[str, Any]:
    value = parse_json(text, what, largest=largest, unique_keys=True)
    if not isinstance(value, dict):
        raise UserError(f"{what} is not an object in JSON")
    return value
