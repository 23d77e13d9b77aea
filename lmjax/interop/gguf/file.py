"""The container format GGUF, versions 2 and 3.

A file has a header of metadata and tensor descriptions, followed by the tensors' bytes. Every count, length and offset
of the header is checked against the size of the file before data of that size is read: a damaged or malicious file
costs no more time and memory than its size justifies.
"""

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from lmjax.config import UserError
from lmjax.config.regular_files import open_regular
from lmjax.system.extras import missing

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_ALIGNMENT = 32  # of the tensors' bytes; the metadata can override it
_AXES = 4  # maximum number of axes of a tensor
_LONGEST = 255  # maximum number of characters of a name

# The types of metadata by number: scalars as format characters of `struct` and NumPy, and two types with a length.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _SINGLE = 8, 9, 6

T = TypeVar("T", bool, int, float, str)


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor in the format of the file."""

    #: Name of the tensor.
    name: str
    #: Shape in NumPy's order (rows first).
    shape: tuple[int, ...]
    #: ggml's number of the format.
    type: int
    #: Bytes, uint8 (rows, bytes of a row), a view of the mapped file; a row runs along the last axis.
    rows: np.ndarray

    def floats(self, rows: slice = slice(None)) -> np.ndarray:
        """Dequantize rows to float32, (rows, last axis) or a vector.

        Raises:
            UserError: The format is unknown, or values are not finite.
        """
        quants = library().quants
        format = library().GGMLQuantizationType(self.type)
        try:
            with np.errstate(all="ignore"):
                x = quants.dequantize(self.rows[rows], format)
        except NotImplementedError:
            raise UserError(
                f"tensor '{self.name}' is stored as {format.name}, which the gguf library cannot read; convert the "
                "file to Q8_0 or F16"
            ) from None
        wrong = x.size - int(np.count_nonzero(np.isfinite(x)))
        if wrong:
            raise UserError(
                f"tensor '{self.name}' has {wrong:,} of {x.size:,} values that are not finite; the file is damaged"
            )
        return x[0] if len(self.shape) == 1 else x


@dataclass(frozen=True, eq=False)
class Content:
    """The content of a GGUF file."""

    #: Numbers, booleans, strings, lists of strings and arrays of numbers, by key.
    metadata: dict[str, Any]
    #: Tensors by name.
    tensors: dict[str, Tensor]


def entry(metadata: dict[str, Any], key: str, default: T | None = None, *, kind: type[T]) -> T:
    """Read a scalar of the metadata.

    Raises:
        UserError: It has another type, or is missing and has no default.
    """
    value = metadata.get(key, default)
    if value is None:
        raise UserError(f"{key} is missing from the metadata")
    if type(value) is not kind:
        raise UserError(f"{key}={shown(value)} is not of type {kind.__name__}")
    return value


def shown(value: Any) -> str:
    """Format a metadata value for a message, on one line."""
    return repr(value)[:80] if isinstance(value, (bool, int, float, str)) else f"<{type(value).__name__}>"


def library() -> ModuleType:
    """Import the package gguf.

    Raises:
        UserError: It is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise missing("a GGUF file", "gguf", "gguf") from None
    return gguf


def read(path: Path) -> Content:
    """Read the header of a file and map its tensors.

    Raises:
        UserError: It is not a valid GGUF file.
    """
    if not path.is_file():
        raise UserError("this is not a file")
    if path.stat().st_size < 24:
        raise UserError("this is not a GGUF file: it is too short")
    try:
        with open_regular(path) as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"it cannot be read: {error.strerror}") from None
    cursor = _Cursor(data)
    if cursor.take(4) != _MAGIC:
        raise UserError("this is not a GGUF file: it does not start with 'GGUF'")
    version = cursor.number("I")
    if version not in _VERSIONS:
        known = " and ".join(map(str, _VERSIONS))
        raise UserError(f"it has version {version} (or is big-endian); lmjax reads versions {known}: convert it again")
    tensors, entries = cursor.number("Q"), cursor.number("Q")
    cursor.expect(tensors, 24, "tensors")
    cursor.expect(entries, 13, "entries of metadata")
    metadata = _unique(((cursor.name(), cursor.value(cursor.number("I"))) for _ in range(entries)), "metadata key")
    described = _unique((cursor.tensor() for _ in range(tensors)), "tensor")
    return Content(metadata, _placed(described, np.frombuffer(data, np.uint8), cursor.at, metadata))


def _unique(pairs: Iterator[tuple[str, Any]], kind: str) -> dict[str, Any]:
    by_name: dict[str, Any] = {}
    for name, value in pairs:
        if name in by_name:
            raise UserError(f"it has the {kind} '{name}' twice")
        by_name[name] = value
    return by_name


def _placed(described: dict[str, Any], data: np.ndarray, end: int, metadata: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors, each with its bytes: offsets count from the end of the header, rounded up."""
    alignment = entry(metadata, "general.alignment", _ALIGNMENT, kind=int)
    if alignment <= 0 or alignment & (alignment - 1):
        raise UserError(f"general.alignment={alignment} is not a power of two")
    start = -(-end // alignment) * alignment
    sizes = {int(format): sizes for format, sizes in library().GGML_QUANT_SIZES.items()}
    tensors, total = {}, 0
    for name, (shape, type_, offset) in described.items():
        if type_ not in sizes:
            raise UserError(f"tensor '{name}' is stored in a format that the gguf library does not know: {type_}")
        block, size = sizes[type_]
        if shape[-1] % block:
            raise UserError(f"tensor '{name}' has rows of {shape[-1]}, not a multiple of its blocks of {block}")
        count, width = math.prod(shape[:-1]), shape[-1] // block * size
        total += count * width
        first = start + offset
        if first + count * width > len(data) or total > len(data):
            raise UserError(f"tensor '{name}' extends beyond the end of the file; it is cut short or damaged")
        tensors[name] = Tensor(name, shape, type_, data[first : first + count * width].reshape(count, width))
    return tensors


class _Cursor:
    """Sequential reader of the header's little-endian values."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        self.expect(size, 1, "bytes")
        self.at += size
        return self.data[self.at - size : self.at]

    def expect(self, count: int, size: int, unit: str) -> None:
        """Check that the rest of the file can hold `count` items of at least `size` bytes."""
        left = len(self.data) - self.at
        if count * size > left:
            raise UserError(
                f"its header promises {count} {unit}, but it has {left} bytes left; it is truncated or damaged"
            )

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        try:
            return str(self.take(self.number("Q")), "utf-8")
        except UnicodeDecodeError:
            raise UserError(f"the text that ends at byte {self.at} is not UTF-8") from None

    def name(self) -> str:
        name = self.string()
        if not name.isprintable() or not 0 < len(name) <= _LONGEST:
            raise UserError(f"the name that ends at byte {self.at} is invalid; the file is damaged")
        return name

    def value(self, type: int) -> Any:
        """A metadata value; single precision as the shortest number that rounds to it (1e-05)."""
        if type == _STRING:
            return self.string()
        if type == _SINGLE:
            return float(str(np.float32(self.number("f"))))
        if type in _SCALARS:
            return self.number(_SCALARS[type])
        if type != _ARRAY:
            raise UserError(f"there is no type {type} of metadata (at byte {self.at})")
        type, count = self.number("I"), self.number("Q")
        if type == _STRING:
            self.expect(count, 8, "strings")
            return [self.string() for _ in range(count)]
        if type not in _SCALARS:
            raise UserError(f"metadata of arrays of type {type} cannot be read (at byte {self.at})")
        dtype = np.dtype("<" + _SCALARS[type])
        self.expect(count, dtype.itemsize, "numbers")
        return np.frombuffer(self.take(count * dtype.itemsize), dtype).copy()

    def tensor(self) -> tuple[str, tuple[tuple[int, ...], int, int]]:
        """Name -> (shape, format, offset) of a tensor; the file reverses NumPy's order of axes."""
        name, axes = self.name(), self.number("I")
        if not 1 <= axes <= _AXES:
            raise UserError(f"tensor '{name}' has {axes} axes; 1 to {_AXES} are possible")
        shape = tuple(self.number("Q") for _ in range(axes))[::-1]
        if 0 in shape:
            raise UserError(f"tensor '{name}' is empty")
        return name, (shape, self.number("I"), self.number("Q"))
