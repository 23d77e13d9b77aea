"""The public functions of `import lmjax`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lmjax
from lmjax.config import Config, RuntimeConfig, UserError
from lmjax.system import runtime
from lmjax.training.events import Event
from tests import ROOT

SHORT = ("train.sample_tokens=0", "train.baselines=false")


@pytest.mark.slow
def test_a_run_is_trained_and_resumed(tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    run = lmjax.train(tiny, *SHORT, run_dir=str(tmp_path / "run"), quiet=True)
    assert capsys.readouterr().out == ""
    assert (run.run, run.status, os.fspath(run)) == (tmp_path / "run", "finished", str(tmp_path / "run"))
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert run.evaluations["val_loss"][-1] == run.summary["val_loss"] == last["val_loss"]
    assert run.metrics["update"].tolist() == sorted(set(run.metrics["update"].tolist()))
    assert "val_loss" not in run.metrics
    assert lmjax.resume(run).summary == run.summary  # complete already
    assert capsys.readouterr().out != ""
    with pytest.raises(UserError, match="exists"):
        lmjax.train(tiny, run_dir=run.run)
    with pytest.raises(UserError, match=r"is not a run: it has no config.json"):
        lmjax.resume(tmp_path / "nowhere")


@pytest.mark.slow
def test_an_interrupted_run_raises_and_is_continued(tiny: Config, tmp_path: Path) -> None:
    """The signal of Ctrl-C arrives during the fifth update."""

    def interrupt(event: Event) -> None:
        if signals and (event.kind, event.update) == ("update", 5):
            os.kill(os.getpid(), signals.pop())

    lmjax.register_callback("interrupt_at_five", interrupt)
    own = (*SHORT, "train.callbacks=[interrupt_at_five]")
    signals = [signal.SIGINT]
    with pytest.raises(KeyboardInterrupt, match="saved after update"):
        lmjax.train(tiny, *own, run_dir=tmp_path / "run", quiet=True)
    signals = [signal.SIGTERM]
    assert lmjax.train(tiny, *own, run_dir=tmp_path / "other", quiet=True).status == "stopped"
    assert lmjax.resume(tmp_path / "run", quiet=True).status == "finished"


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
