"""The public functions of `import lmjax`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lmjax
from lmjax.config import Config, RuntimeConfig, UserError
from lmjax.system import runtime
from tests import ROOT

SHORT = ("train.sample_tokens=0", "train.baselines=false")


@pytest.mark.slow
def test_a_run_is_trained_and_resumed(tiny: Config, tmp_path: Path) -> None:
    run = lmjax.train(tiny, *SHORT, run_dir=tmp_path / "run")
    assert run == tmp_path / "run"
    assert lmjax.resume(run) == run  # complete already
    with pytest.raises(UserError, match="exists"):
        lmjax.train(tiny, run_dir=run)
    with pytest.raises(UserError, match=r"is not a run: it has no config.json"):
        lmjax.resume(tmp_path / "nowhere")


@pytest.mark.slow
def test_a_run_is_loaded_continued_and_evaluated(tiny: Config, tmp_path: Path) -> None:
    run = lmjax.train(tiny, *SHORT, run_dir=tmp_path / "run")
    lm = lmjax.load(run)
    assert isinstance(lmjax.generate(lm, "the cat", max_tokens=4), str)
    assert len(lmjax.generate(run, ["the", "cat"], max_tokens=4)) == 2
    assert set(lmjax.evaluate(lm, ["copying"], shots=(0,), limit=2, max_tokens=4).tasks) == {"copying"}


def test_the_public_names_are_few_and_import_nothing_heavy() -> None:
    extending = [name for name in lmjax.__all__ if name.startswith("register_")]
    assert len(lmjax.__all__) - len(extending) <= 10
    code = "import lmjax, sys; assert not {'jax', 'numpy', 'flax'} & set(sys.modules); lmjax.register_family"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        lmjax.trian  # noqa: B018


def test_settings_that_come_too_late_for_jax_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    runtime.start(RuntimeConfig(host_devices=2))
    with pytest.raises(UserError, match=r"JAX was started before lmjax could set XLA_FLAGS .*device_count=4"):
        runtime.start(RuntimeConfig(host_devices=4))
