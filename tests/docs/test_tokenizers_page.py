"""The page on tokenizers lists every setting with its effect."""

from lmjax.data.tokenizer_settings import EFFECTS, EXPORTED, NAMES
from tests import ROOT

PAGE = (ROOT / "docs" / "guide" / "tokenizers.md").read_text()


def test_every_setting_is_listed_with_its_effect() -> None:
    for name, effect in EFFECTS.items():
        assert f"| `{name}` | {effect[0].upper()}{effect[1:]} |" in PAGE


def test_what_is_exported_is_listed() -> None:
    assert {*EXPORTED, *NAMES} <= EFFECTS.keys()
