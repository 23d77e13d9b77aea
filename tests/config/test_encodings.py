"""Names of encodings: those of text files that Python has."""

import pytest

from lmjax.config import Config, DataConfig, UserError
from lmjax.config.encodings import codec, text_encoding
from lmjax.config.ranges import check_ranges


def test_the_names_of_text_encodings() -> None:
    valid = ["utf-8", "UTF8", "utf-8-sig", "latin-1", "cp1252", "gb18030", "shift_jis", "utf-16", "ascii"]
    invalid = ["", "none", "rot13", "hex", "base64", "zlib", "idna", "punycode", "undefined", "a\0", "../x", "os"]
    assert [name for name in valid if not text_encoding().is_valid(name)] == []
    assert [name for name in invalid if text_encoding().is_valid(name)] == []
    assert codec("U8").name == "utf-8"
    with pytest.raises(UserError, match=r"data\.encoding = 'rot13' is not an encoding of text; set it to utf-8"):
        codec("rot13")


def test_a_configuration_is_checked_before_anything_is_read() -> None:
    with pytest.raises(UserError, match=r"data\.encoding = .* is not an encoding of text"):
        check_ranges(Config(data=DataConfig(encoding="utf-9")))
