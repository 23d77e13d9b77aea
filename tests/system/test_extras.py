"""The command that installs an optional package fits the place of lmjax."""

import re
import tomllib
from pathlib import Path

import pytest

from lmjax.system import extras
from tests import ROOT


def test_the_command_names_the_checkout_or_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert extras.install_command("rl") == "pip install -e '.[rl]'"
    assert extras.install_command("plan-tpu") == "pip install -e '.[plan-tpu]' (0.7 GB)"
    monkeypatch.chdir(tmp_path)
    assert extras.install_command("rl") == f"pip install -e '{ROOT}[rl]'"
    monkeypatch.setattr(extras, "_ROOT", tmp_path)  # an installed package is in no checkout
    assert extras.install_command("rl") == "pip install 'lmjax[rl]'"


def test_every_extra_that_a_message_names_exists() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    call = re.compile(r'missing\([^()]*"([a-z-]+)"(?:, otherwise=\w+)?\)')
    named = {name for path in (ROOT / "lmjax").rglob("*.py") for name in call.findall(path.read_text())}
    assert named >= {"chat", "gguf", "rl", "evaluate", "track"}
    assert named <= known.keys()
