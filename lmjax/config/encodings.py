"""Encodings of text files."""

import codecs

from lmjax.config.errors import UserError
from lmjax.config.ranges import Range

UTF_8 = "utf-8"
_NOT_OF_FILES = ("idna", "punycode", "undefined")


def codec(encoding: str) -> codecs.CodecInfo:
    """Return the codec of an encoding of text.

    Raises:
        UserError: There is no such encoding.
    """
    if (info := _find(encoding)) is None:
        raise UserError(f"data.encoding = {encoding[:80]!r} {text_encoding().rule}")
    return info


def text_encoding() -> Range:
    """Names of encodings of text that Python has."""
    return Range(
        lambda name: _find(name) is not None,
        "is not an encoding of text; set it to utf-8, utf-16, latin-1, cp1252, gb18030, shift_jis or another one that "
        "Python has",
        "an encoding of text",
    )


def _find(encoding: str) -> codecs.CodecInfo | None:
    try:
        info = codecs.lookup(encoding)
    except (LookupError, ValueError):  # ValueError: of a name with a NUL character
        return None
    usable = info._is_text_encoding and info.name not in _NOT_OF_FILES and info.incrementaldecoder is not None
    return info if usable else None
