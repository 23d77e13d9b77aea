"""Mutations of files for `fuzz.py`: edits of JSON trees, journals, tables and bytes, each a function of a generator."""

import copy
import hashlib
import io
import json
import random
import struct
from collections.abc import Callable
from typing import Any

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 0.5, -0.0, 2, 7, 256, 65_536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1),
    *(
        2**63,
        2**64,
        -(2**63),
        10**18,
        10**30,
        10**400,
        1e308,
        -1e308,
        1e-320,
        float("nan"),
        float("inf"),
        -float("inf"),
    ),
    *(
        "",
        "x",
        "0",
        "nan",
        "../../../../etc/passwd",
        "/etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "~",
        "~root",
        "\0",
        "a\0b",
    ),
    *(
        "\n",
        "\x1b[2J",
        "\ud800",
        "\u202e",
        "\u0661",
        "a" * 300,
        "a" * 100_000,
        "{",
        "%s%n",
        "$(id)",
        "*",
        "**/*",
        "[a]",
    ),
    *("hub:/etc", "hub:../..", "hub:owner/name", "hub:", "http://127.0.0.1/", "(a+)+$", "file:///etc", "__class__"),
    *([], {}, [[]], [None], [1, 2], {"a": 1}, {"": ""}, [[[[[[[[1]]]]]]]], {"family": "gpt"}, ["x"] * 1000),
)
NUMBERS = (0, 1, 2, 8, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)

Edit = Callable[[bytes, random.Random], bytes]


# ---- JSON -----------------------------------------------------------------------------------------------------------


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree."""
    found, todo = [], [tree]
    while todo:
        node = todo.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        found += [(node, key) for key in keys]
        todo += [node[key] for key in keys]
    return found


def edit_tree(tree: Any, rng: random.Random) -> Any:
    """One edit at a random place of a tree."""
    where = places(tree)
    if not where or rng.random() < 0.02:
        return copy.deepcopy(rng.choice(HOSTILE))
    node, key = rng.choice(where)
    kind = rng.randrange(8)
    if kind == 0:
        del node[key]
    elif kind == 1:
        other, other_key = rng.choice(where)
        node[key] = copy.deepcopy(other[other_key])
    elif kind == 2 and isinstance(node, dict):
        name = rng.choice([str(key) + "x", "", "a" * 1000, "\n", "family", "extensions", "../x"])
        node[name] = copy.deepcopy(rng.choice(HOSTILE))
    elif kind == 3 and isinstance(node, list):
        node[:] = node * rng.choice([0, 2, 50])
    elif kind == 4 and isinstance(node[key], int | float):
        factor = rng.choice([-1, 2, 0.5, 1000])
        number = node[key] if abs(node[key]) < 1e300 else int(node[key] > 0)  # half of a long integer is no float
        node[key] = number * factor + rng.choice([-1, 0, 1])
    elif kind == 5 and isinstance(node[key], str):
        text = node[key]
        at = rng.randint(0, len(text))
        node[key] = (
            text[:at] + rng.choice(["\0", "/", "../", "\n", "'", "]", "=", "\ud800", "9" * 30, ""]) + text[at + 1 :]
        )
    else:
        node[key] = copy.deepcopy(rng.choice(HOSTILE))
    return tree


def json_text(tree: Any, rng: random.Random) -> bytes:
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def edit_json(content: bytes, rng: random.Random) -> bytes:
    """Edits of the tree, or of the text."""
    if rng.random() < 0.2:
        return edit_json_text(content, rng)
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):  # an earlier edit
        return edit_bytes(content, rng)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        tree = edit_tree(tree, rng)
    return json_text(tree, rng)


def edit_json_text(content: bytes, rng: random.Random) -> bytes:
    colons = [at for at, byte in enumerate(content) if byte in b":,["]
    at = (rng.choice(colons) if colons else 0) + 1
    kind = rng.randrange(9)
    if kind == 0:
        depth = rng.choice([90, 200, 2000, 1_000_000])
        return content[:at] + b"[" * depth + b"]" * rng.choice([0, depth]) + content[at:]
    if kind == 1:
        return (
            content[:at]
            + rng.choice([b"9" * 5000, b"1e400", b"-1e999999", b"NaN", b"0x1", b"1" + b"0" * 400])
            + content[at:]
        )
    if kind == 2:
        return content.decode("utf-8", "replace").encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-8-sig"]))
    if kind == 3:
        return content + rng.choice([b"x", b"{}", b"\0", b"\xff", b"\n" * 1000])
    if kind == 4:
        return content[: rng.randint(0, len(content))]
    if kind == 5:
        return b"\xff\xfe" + content
    if kind == 6:  # every key twice
        return content.replace(b"{", b'{"name": 1, "name": 2, ', rng.choice([1, 1000]))
    if kind == 7:
        return b'{"a":' * rng.choice([50, 5000, 200_000]) + b"1" + b"}" * 50
    return edit_bytes(content, rng)


def edit_json_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines()
    for _ in range(rng.choice([1, 1, 3])):
        at = rng.randrange(len(lines))
        kind = rng.randrange(6)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(rng.randint(0, len(lines)), lines[at])
        elif kind == 2:
            lines[at] = edit_bytes(lines[at], rng)
        else:
            lines[at] = edit_json(lines[at], rng) if lines[at].startswith(b"{") else b"{}"
        lines = lines or [b"{}"]
    return b"\n".join(lines) + rng.choice([b"\n", b"\n", b""])


def edit_journal(content: bytes, rng: random.Random) -> bytes:
    """Edits of the records, with a chain of hashes that is intact, as a forger would; or of the text."""
    if rng.random() < 0.15:
        return edit_json_lines(content, rng)
    records = [json.loads(line) for line in content.splitlines()]
    for _ in range(rng.choice([1, 1, 2, 4])):
        at, kind = rng.randrange(len(records)), rng.randrange(7)
        if kind == 0 and len(records) > 1:
            del records[at]
        elif kind == 1:
            records.insert(rng.randint(0, len(records)), copy.deepcopy(records[at]))
        elif kind == 2:
            other = rng.randrange(len(records))
            records[at], records[other] = records[other], records[at]
        else:
            edited = edit_tree(records[at], rng)
            records[at] = edited if isinstance(edited, dict) else records[at]
    previous, lines = "0" * 64, []
    for record in records:
        line = json.dumps(record | {"previous": previous}, separators=(",", ":")).encode() + b"\n"
        previous = hashlib.sha256(line).hexdigest()
        lines.append(line)
    return b"".join(lines)


# ---- Bytes ----------------------------------------------------------------------------------------------------------


def edit_bytes(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = min(rng.randint(0, len(data)), rng.choice([len(data), 16, 256, 4096]))
        if rng.random() < 0.2:  # formats with a footer
            at = max(0, len(data) - rng.randint(0, 600))
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + rng.choice([1, 2, 4, 8, 100, 5000])] = b""
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.choice([1, 4, 100]))
        elif kind == 3:
            size = rng.choice([1, 2, 4, 8])
            number = rng.choice(NUMBERS) % (1 << 8 * size)
            data[at : at + size] = number.to_bytes(size, rng.choice(["little", "big"]))
        elif kind == 4:
            del data[rng.randint(0, len(data)) :]
        elif kind == 5:
            data[at:at] = data[at : at + rng.choice([10, 1000])] * rng.choice([1, 20])
        else:
            data[at : at + 50] = bytes(50)
    return bytes(data)


def edit_text(content: bytes, rng: random.Random) -> bytes:
    """Edits of text or a table in text."""
    at, kind = rng.randint(0, len(content)), rng.randrange(8)
    pieces = (
        b'"',
        b"'",
        b",",
        b"\t",
        b"\0",
        b"\xff",
        b"\r",
        b"\r\n",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\n" * 9,
        b"{",
        b"=",
    )
    if kind == 0:
        return content[:at] + b"a" * rng.choice([1000, 5_000_000]) + content[at:]
    if kind == 1:
        return content.decode("utf-8", "replace").encode(
            rng.choice(["utf-16", "utf-16-be", "utf-32", "cp500"]), "replace"
        )
    if kind == 2:
        return content.replace(b"\n", rng.choice([b"", b"\r", b"\0", b"\n\n", b"\x85"]))
    if kind == 3:
        return content * rng.choice([0, 2, 200])
    if kind == 4:
        return edit_bytes(content, rng)
    for _ in range(rng.choice([1, 3, 20])):
        at = rng.randint(0, len(content))
        content = content[:at] + rng.choice(pieces) + content[at:]
    return content


def edit_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Edits of the header, with its length adjusted; or of the bytes."""
    if rng.random() < 0.3:
        return edit_bytes(content, rng)
    (length,) = struct.unpack("<Q", content[:8])
    header = edit_json(content[8 : 8 + length], rng)
    claimed = rng.choice([len(header)] * 8 + [rng.choice(NUMBERS) % 2**64])
    return struct.pack("<Q", claimed) + header + content[8 + length :]


def edit_header(content: bytes, rng: random.Random) -> bytes:
    """Changes of numbers in the header of a GGUF file: counts, lengths, types, dimensions, offsets and values."""
    if rng.random() < 0.2:
        return edit_bytes(content, rng)
    data, places = bytearray(content), header_numbers(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at, size = rng.choice(places)
        value = int.from_bytes(data[at : at + size], "little")
        near = (value + 1, value - 1, value * 2, value // 2, value ^ 1 << rng.randrange(8 * size), rng.randrange(14))
        data[at : at + size] = (rng.choice([*near, *NUMBERS]) % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(data)


def header_numbers(content: bytes) -> list[tuple[int, int]]:
    """Place and size of the numbers in the header of a valid GGUF file; of an array, the first values."""
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    text, array = 8, 9
    places, at = [(4, 4), (8, 8), (16, 8)], 24

    def number(size: int) -> int:
        nonlocal at
        places.append((at, size))
        at += size
        return int.from_bytes(content[at - size : at], "little")

    def skip_value(kind: int) -> None:
        nonlocal at
        if kind == text:
            length = number(8)
            at += length
        elif kind == array:
            item, count = number(4), number(8)
            for index in range(count):
                skip_value(item)
                if index >= 4:  # enough of them
                    del places[-1]
        else:
            number(sizes[kind])

    tensors, entries = (int.from_bytes(content[begin : begin + 8], "little") for begin in (8, 16))
    for _ in range(entries):
        length = number(8)
        at += length
        skip_value(number(4))
    for _ in range(tensors):
        length = number(8)
        at += length
        for _ in range(number(4)):
            number(8)
        number(4)
        number(8)
    return places


# ---- Tables and compressed files ------------------------------------------------------------------------------------


def edit_parquet(content: bytes, rng: random.Random) -> bytes:
    """Valid files with edited rows and column types; or edits of the bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pq.read_table(io.BytesIO(content)).to_pylist()
    try:
        rows = json.loads(edit_json(json.dumps(rows).encode(), rng)) if rng.random() < 0.5 else None
        table = pa.Table.from_pylist(rows)
        out = io.BytesIO()
        pq.write_table(table, out, compression=rng.choice(["none", "snappy", "zstd"]))
        return out.getvalue()
    except Exception:  # these rows are no table
        return edit_bytes(content, rng)


def packed(compress: Callable[[bytes], bytes], decompress: Callable[[bytes], bytes], inner: Edit) -> Edit:
    """Edits of what is compressed, streams one after the other, streams that expand to much; or edits of the bytes."""

    def edit(content: bytes, rng: random.Random) -> bytes:
        kind = rng.randrange(5)
        if kind < 2:
            return compress(inner(decompress(content), rng))
        if kind == 2:
            return content + rng.choice([content, b"", bytes(100), compress(b""), edit_bytes(content, rng)])
        if kind == 3 and rng.random() < 0.3:
            return compress(rng.choice([b"a", b"\0", b"\n", b"[", b'{"a":']) * 2_000_000) * rng.choice([1, 50])
        return edit_bytes(content, rng)

    return edit
