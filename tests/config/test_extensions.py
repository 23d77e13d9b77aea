"""Registered names, and how a configuration finds them."""

from pathlib import Path

import pytest

from lmjax.config import Config, checks, codec, extensions, presets, user_files
from lmjax.config.errors import UserError

OPTIMIZER = "import lmjax\nlmjax.register_optimizer('{name}', lambda config: {value})\n"
FAMILY = """
from dataclasses import dataclass
from typing import Literal
import lmjax
from lmjax.config import Config, CustomModelConfig

@dataclass(frozen=True)
class TestConfig(CustomModelConfig):
    family: Literal["{name}"] = "{name}"
    taps: int = 3

lmjax.register_family(TestConfig, None, objectives=("causal",))

def own() -> Config:
    return Config(name="own", model=TestConfig(taps=5))
"""


def write(path: Path, text: str, **values: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(**values))
    return path


def test_a_file_on_the_command_line_adds_a_name(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.py", OPTIMIZER, name="mine_a", value=1)
    with pytest.raises(UserError, match=r"optimizer.name: 'mine_a' is unknown; .*extensions=\[FILE.py\]"):
        checks.check(codec.apply_overrides(Config(), ["optimizer.name=mine_a"]))
    config = codec.apply_overrides(Config(), [f"extensions=[{path}]", "optimizer.name=mine_a"])
    checks.check(config)
    assert extensions.get("optimizer.name", "mine_a")(None) == 1
    assert extensions.recorded(config) == (f"{path}#sha256={user_files.sha256(path.read_bytes())}",)


def test_a_family_is_a_member_of_the_union(tmp_path: Path) -> None:
    path = write(tmp_path / "family.py", FAMILY, name="of_a_test")
    config = presets.load(str(path) + ":own")
    assert config.model.family == "of_a_test"
    checks.check(config)
    assert codec.from_json(codec.to_json(config), Config) == config
    changed = codec.apply_overrides(Config(), ["model.family=of_a_test", "model.taps=7"])
    assert changed.model == type(config.model)(taps=7)
    with pytest.raises(UserError, match=r"model.family = of_a_test learns with objective.family = causal, not masked"):
        checks.check(codec.apply_overrides(config, ["objective.family=masked"]))


def test_only_what_a_configuration_uses_is_recorded(tmp_path: Path) -> None:
    used = write(tmp_path / "used.py", OPTIMIZER, name="mine_b", value=1)
    write(tmp_path / "unused.py", OPTIMIZER, name="mine_c", value=1)
    for path in (used, tmp_path / "unused.py"):
        user_files.import_file(path)
    config = codec.apply_overrides(Config(), ["optimizer.name=mine_b"])
    assert [entry.partition("#")[0] for entry in extensions.recorded(config)] == [str(used)]
    assert extensions.recorded(Config()) == ()


def test_a_name_belongs_to_one_file(tmp_path: Path) -> None:
    first = write(tmp_path / "first.py", OPTIMIZER, name="mine_d", value=1)
    second = write(tmp_path / "second.py", OPTIMIZER, name="mine_d", value=2)
    user_files.import_file(first)
    with pytest.raises(UserError, match=r"first.py registered this name before .*second.py"):
        user_files.import_file(second)
    write(first, OPTIMIZER, name="mine_d", value=3)  # a changed file replaces what it registered
    user_files.import_file(first)
    assert extensions.get("optimizer.name", "mine_d")(None) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OPTIMIZER.format(name="adamw", value=1), "register optimizer.name 'adamw': lmjax has this name already"),
        (OPTIMIZER.format(name="a-b", value=1), "the name must be an identifier"),
        ("import lmjax\nlmjax.register_family(int, None)", r"derived from lmjax.config.CustomModelConfig"),
        ("import lmjax\nlmjax.register_family(lmjax.Config, None)", r"derived from lmjax.config.CustomModelConfig"),
        (
            "import lmjax\nfrom lmjax.config import CustomModelConfig as C\n"
            "class D(C): ...\nlmjax.register_family(D, None)",
            r"family: Literal\['NAME'\] = 'NAME'",
        ),
        ("import lmjax\nlmjax.register_callback('not_callable', 5)", "give a function, not 5"),
        ("import sys\nsys.exit()", r"bad.py, line 2: SystemExit"),
        ("import lmjax\n1 / 0", r"bad.py, line 2: ZeroDivisionError: division by zero"),
        ("import lmjax\nx = (", r"bad.py, line 2: SyntaxError"),
        ("import nowhere_to_be_seen", r"bad.py, line 1: ModuleNotFoundError"),
    ],
)
def test_a_mistake_names_the_file_and_the_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        user_files.import_file(path)


def test_a_registration_outside_a_file_is_refused() -> None:
    scope: dict[str, object] = {"__name__": "__main__"}
    code = compile("import lmjax\nlmjax.register_callback('noted', print)", "<cell>", "exec")
    with pytest.raises(UserError, match=r"the call is not in a file.*write it into a \.py file"):
        exec(code, scope)
