"""The settings that stand before JAX starts: set where the user has not, visible, and in time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmjax import runtime

ROOT = Path(__file__).parents[1]
SCRIPT = """
import json, os, sys
from lmjax import runtime
runtime.prepare()
assert "jax" not in sys.modules
import jax
print(json.dumps([jax.config.jax_compilation_cache_dir, os.environ["TOKENIZERS_PARALLELISM"]]))
try:
    runtime.prepare()
except AssertionError:
    print("too late")
"""


def test_settings_reach_jax_and_the_users_own_stay(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    environment["TOKENIZERS_PARALLELISM"] = "false"
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=True)
    first, second = done.stdout.splitlines()
    assert json.loads(first) == [str(tmp_path / "lmjax" / "compiled"), "false"]
    assert second == "too late"


def test_a_compiler_without_its_devices_does_not_make_jax_look_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    installed, present = set(), set()
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(runtime.glob, "glob", lambda pattern: sorted(present & {pattern}))
    assert not runtime._only_compilers()
    installed.add("libtpu")
    assert runtime._only_compilers()
    present.add("/dev/vfio/[0-9]*")  # a TPU
    assert not runtime._only_compilers()
