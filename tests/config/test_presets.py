"""Configurations by name, by path, and as JSON."""

from pathlib import Path

import pytest

from lmjax.config import Config, UserError, presets
from lmjax.config.checks import check
from lmjax.config.codec import from_json, to_json
from lmjax.models import registry

SOURCE = '''
from lmjax.config import Config

def _helper():
    return 1

def mine() -> Config:
    """A test."""
    return Config(name="mine", seed=_helper())

def other() -> Config:
    return Config(name="other")

def wrong():
    return 3
'''


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_sound_and_documented(name: str) -> None:
    config = presets.load(name)
    check(config)
    registry.check(config.model)
    assert presets.names()[name][1].strip()
    assert from_json(to_json(config), Config) == config


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2_124m", 124_439_808),
        ("gpt2_350m", 354_823_168),
        ("gpt2_774m", 774_030_080),
        ("gpt2_1558m", 1_557_611_200),
        ("llama_1b", 1_235_814_400),
        ("llama_7b", 6_738_415_616),
        ("bert_base", 110_106_428),
        ("bert_large", 336_226_108),
    ],
)
def test_published_models_have_their_published_size(name: str, count: int) -> None:
    assert registry.parameters(presets.load(name).model)["total"] == count


@pytest.mark.parametrize(
    ("name", "billions"),
    [("125m", 0.125), ("350m", 0.356), ("760m", 0.760), ("1300m", 1.316), ("2700m", 2.65), ("6700m", 6.66),
     ("13b", 12.85), ("175b", 174.6)],
)  # fmt: skip
def test_gpt3_has_the_sizes_of_its_table(name: str, billions: float) -> None:
    total = registry.parameters(presets.load(f"gpt3_{name}").model)["total"]
    assert total / 1e9 == pytest.approx(billions, rel=0.01)  # the table's column n_params, with its rounding


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    assert presets.load(str(path)) == Config(name="mine", seed=1)
    assert presets.load(f"{path}:other").name == "other"
    with pytest.raises(UserError, match="no function 'nothing'"):
        presets.load(f"{path}:nothing")
    with pytest.raises(UserError, match="returned int, not a Config"):
        presets.load(f"{path}:wrong")


def test_a_saved_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(to_json(Config(seed=7)))
    assert presets.load(str(path)).seed == 7
    with pytest.raises(UserError, match="no such config file"):
        presets.load(str(tmp_path / "none.json"))
