"""Whole runs: what a run directory holds, and that a run which was stopped anywhere ends with the same bits."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import pytest

from lmjax.cli import actions
from lmjax.config import Config, UserError, presets
from lmjax.config.codec import apply_overrides, from_json, to_json
from lmjax.display.console import Console
from lmjax.journal import journal
from lmjax.run import build, launch, pretrained, resume, validation
from lmjax.run.saved import best, load
from lmjax.training import checkpoint, metrics
from lmjax.training.checkpoint import CheckpointError
from tests import ROOT


def summary(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())


def digest_of(config: Config, run_dir: Path) -> str:
    assert launch.start(config, run_dir) == 0
    return summary(run_dir)["digest"]


@pytest.mark.slow
def test_a_run_directory_holds_what_the_design_says(tiny: Config, tmp_path: Path) -> None:
    assert launch.start(tiny, tmp_path / "run") == 0
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "config.sha256", "tokenizer.json", "metrics.jsonl", "journal.jsonl", "checkpoints",
        "summary.json", "plots", "report.html", "sample.txt",
    }  # fmt: skip
    saved = from_json((folder / "config.json").read_text(), Config)
    assert saved == build.resolve(tiny, 257)
    end = summary(folder)
    assert end.keys() >= {
        "status", "updates", "tokens", "seconds", "val_loss", "val_bits_per_byte", "baselines", "digest",
        "parameters", "peak_memory_bytes",
    }  # fmt: skip
    assert (end["status"], end["updates"], end["tokens"]) == ("finished", 12, 6 * 64 + 6 * 128)
    assert end["baselines"].keys() == {"unigram_bits_per_byte", "kneser_ney_5gram_bits_per_byte"}
    records = metrics.read(folder / "metrics.jsonl")
    training = [record for record in records if "loss" in record]
    assert [record["update"] for record in training] == list(range(1, 13))
    wanted = {"update", "loss", "learning_rate", "grad_norm", "batch_size", "tokens", "tokens_per_second", "mfu"}
    assert all(record.keys() >= wanted for record in training)
    assert [record["update"] for record in records if "val_loss" in record] == [4, 8, 12]
    events = journal.read(folder / "journal.jsonl")
    assert events[0]["event"] == "start"
    assert events[-1]["event"] == "end"
    assert events[-1]["digest"] == end["digest"]
    assert [e["update"] for e in events if e["event"] == "checkpoint"] == [0, 4, 8, 12]
    assert [e["digest"] for e in events if e["event"] == "checkpoint"][-1] == end["digest"]
    assert sorted(path.name for path in (folder / "plots").iterdir()) == ["health.png", "loss.png"]


@pytest.mark.slow
def test_the_same_configuration_gives_the_same_bits_and_another_seed_others(tiny: Config, tmp_path: Path) -> None:
    first = digest_of(tiny, tmp_path / "a")
    assert digest_of(tiny, tmp_path / "b") == first
    assert digest_of(dataclasses.replace(tiny, seed=1), tmp_path / "c") != first


@pytest.mark.slow
@pytest.mark.parametrize("newest", [4, 8, 12])
def test_a_run_continued_from_any_checkpoint_ends_with_the_same_bits(tiny: Config, tmp_path: Path, newest: int) -> None:
    folder = tmp_path / "run"
    whole = digest_of(tiny, folder)
    losses = [record["loss"] for record in metrics.read(folder / "metrics.jsonl") if "loss" in record]
    for path in checkpoint.folders(folder / "checkpoints"):
        if int(path.name) > newest:
            (path / "meta.json").unlink()  # damaged, so that an older one has to serve
    (folder / "summary.json").unlink()
    assert resume.resume(tiny, folder) == 0
    assert summary(folder)["digest"] == whole
    assert [record["loss"] for record in metrics.read(folder / "metrics.jsonl") if "loss" in record] == losses
    events = [record["event"] for record in journal.read(folder / "journal.jsonl")]
    assert ("fallback" in events) == (newest < 12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.exhaustive),
        pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive),
    ],
)
def test_a_process_stopped_by_a_signal_resumes_with_the_same_bits(
    tiny: Config, tmp_path: Path, number: signal.Signals
) -> None:
    config = apply_overrides(tiny, ["train.updates=400", "train.evaluate_every=50", "checkpoint.every=20"])
    whole = digest_of(config, tmp_path / "whole")
    (tmp_path / "config.json").write_text(to_json(config))
    folder = tmp_path / "run"

    def command(*words: str) -> subprocess.Popen[str]:
        arguments = [sys.executable, ROOT / "train.py", *words]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)

    process = command(str(tmp_path / "config.json"), "--run-dir", str(folder))
    limit = time.monotonic() + 120
    while not checkpoint.folders(folder / "checkpoints"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 0
        assert f"stopped by {number.name}" in output
        assert output.splitlines()[-1].strip() == f"python train.py --resume {folder}"
        assert summary(folder)["status"] == "stopped"
    assert not (folder / "plots").exists()

    process = command("--resume", str(folder))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "resuming " in output
    assert summary(folder)["status"] == "finished"
    assert summary(folder)["digest"] == whole
    losses = {record["update"]: record["loss"] for record in metrics.read(folder / "metrics.jsonl") if "loss" in record}
    expected = metrics.read(tmp_path / "whole" / "metrics.jsonl")
    assert losses == {record["update"]: record["loss"] for record in expected if "loss" in record}


@pytest.mark.slow
def test_batch_growth_compiles_nothing_again(tiny: Config, tmp_path: Path) -> None:
    compiled: list[int] = []
    whole = build.update_function

    def counting(parts: build.Run, **named: Any) -> Any:
        update = whole(parts, **named)
        compiled.append(0)

        def call(*arguments: Any) -> Any:
            result = update(*arguments)
            compiled[0] = update._cache_size()
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "update_function", counting)
        launch.start(tiny, tmp_path / "run")
    assert compiled == [1]


# ---- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_existing_run_is_never_overwritten(tiny: Config, tmp_path: Path) -> None:
    digest_of(tiny, tmp_path / "run")
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(UserError, match="exists: resume it with --resume"):
        launch.start(tiny, tmp_path / "run")
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*")) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.context=100000 batch.tokens=((0,400000),)", "block is longer than the corpus"),
        ("model.vocab_size=100", "smaller than the tokenizer's 257"),
        ("model.heads=3", "model.heads"),
        ("batch.microbatch=5", "batch.tokens"),
        ("parallel.devices=64", "parallel.devices=64"),
        ("schedule.peak=-1", "schedule.peak"),
        ("data.files=[nowhere.txt]", "nowhere.txt"),
    ],
)
def test_what_cannot_work_is_refused_and_leaves_nothing_behind(
    tiny: Config, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        launch.start(apply_overrides(tiny, override.split()), tmp_path / "run")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_resumes_only_as_it_was_configured(tiny: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    digest_of(tiny, folder)
    longer = apply_overrides(tiny, ["train.updates=16"])
    with pytest.raises(UserError, match=r"train\.updates: 12 -> 16.*--allow-change train.updates"):
        resume.resume(longer, folder)
    with pytest.raises(UserError, match=r"did you mean 'train\.updates'"):
        resume.resume(longer, folder, allow=["train.update"])
    assert resume.resume(longer, folder, allow=["train.updates"]) == 0
    assert summary(folder)["updates"] == 16
    changes = [record["changed"] for record in journal.read(folder / "journal.jsonl") if record["event"] == "resume"]
    assert changes == [["train.updates: 12 -> 16"]]


@pytest.mark.slow
def test_more_epochs_after_the_end_give_the_run_of_that_length(tiny: Config, tmp_path: Path) -> None:
    """The rate is constant, so that it does not depend on the length of the run."""
    constant = ["schedule.shape=constant", "schedule.warmup=0", "train.updates=0"]
    one, two = (apply_overrides(tiny, [*constant, f"train.epochs={count}"]) for count in ("0.25", "0.5"))
    longer = digest_of(two, tmp_path / "two")
    saved = from_json((tmp_path / "two" / "config.json").read_text(), Config).train
    assert (saved.epochs, saved.tokens) == (0.5, 0)
    assert 0 <= summary(tmp_path / "two")["tokens"] - 0.5 * saved.epoch_tokens < 128
    assert digest_of(one, tmp_path / "one") != longer
    with pytest.raises(UserError, match=r"train\.epochs: 0\.25 -> 0\.5\); to change it: --allow-change train\.epochs"):
        resume.resume(two, tmp_path / "one")
    assert resume.resume(two, tmp_path / "one", allow=["train.epochs"]) == 0
    assert summary(tmp_path / "one")["digest"] == longer
    updates = summary(tmp_path / "one")["updates"] + 2
    changed = presets.load(str(tmp_path / "one" / "config.json"), [f"train.updates={updates}"], resuming=True)
    assert resume.resume(changed, tmp_path / "one", allow=["train.updates"]) == 0  # allows the end of train.epochs, too
    assert summary(tmp_path / "one")["updates"] == updates


@pytest.mark.slow
def test_a_complete_run_says_so_and_trains_nothing(
    tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    digest_of(tiny, folder)
    before = (folder / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert resume.resume(tiny, folder) == 0
    assert "is complete" in capsys.readouterr().out
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_changed_data_are_refused(tiny: Config, tmp_path: Path) -> None:
    copy = tmp_path / "text.txt"
    copy.write_bytes(Path(tiny.data.files[0]).read_bytes())
    config = apply_overrides(tiny, [f"data.files=[{copy}]"])
    digest_of(config, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    copy.write_bytes(copy.read_bytes().replace(b"cat", b"cow"))
    with pytest.raises(UserError, match="the data changed since the run began"):
        resume.resume(config, tmp_path / "run")


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_at_zero(tiny: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    digest_of(tiny, folder)
    (folder / "summary.json").unlink()
    for path in checkpoint.folders(folder / "checkpoints"):
        (path / "meta.json").unlink()
    with pytest.raises(CheckpointError, match=r"meta\.json is missing"):
        resume.resume(tiny, folder)


# ---- Showing and using ----------------------------------------------------------------------------------------------


def test_the_plan_prints_without_training(tiny: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.show_plan(tiny) == 0
    printed = capsys.readouterr().out
    for word in ("token embedding", "batch grows", "warm-up ends", "checkpoints", "KiB", "1,152"):
        assert word in printed


@pytest.mark.slow
def test_a_trained_model_continues_a_prompt(tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest_of(tiny, tmp_path / "run")
    texts = []
    for seed in (0, 0, 1):
        capsys.readouterr()
        actions.generate_texts(tmp_path / "run", ["the cat"], dtype="float32", max_tokens=40, seed=seed)
        texts.append(capsys.readouterr().out)
    assert texts[0].startswith("the cat")
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.slow
def test_the_loaded_parameters_are_those_of_the_newest_checkpoint(tiny: Config, tmp_path: Path) -> None:
    digest_of(tiny, tmp_path / "run")
    trained = load(tmp_path / "run")
    assert trained.update == 12
    logits = trained.model.apply({"params": trained.params}, jax.numpy.zeros((1, 4), int))
    assert logits.shape == (1, 4, 257)


@pytest.mark.slow
def test_any_checkpoint_can_be_used(tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    digest_of(tiny, folder)
    scores = {r["update"]: r["val_loss"] for r in metrics.read(folder / "metrics.jsonl") if "val_loss" in r}
    saved = {int(path.name) for path in checkpoint.folders(folder / "checkpoints")}
    update = min(scores.keys() & saved, key=lambda n: scores[n])
    assert best(folder) == (update, scores[update])
    assert json.loads((folder / "summary.json").read_text())["best"] == {"update": update, "val_loss": scores[update]}
    assert load(folder, 8).update == 8
    texts = {}
    for choice in ("best", str(update), "newest"):
        capsys.readouterr()
        actions.generate_texts(folder, ["the"], dtype="float32", checkpoint=choice, max_tokens=5)
        texts[choice] = capsys.readouterr().out
    assert texts["best"] == texts[str(update)]
    for choice, wrong in (("5", "no checkpoint of update 5, but of 0"), ("last", "give newest, best")):
        with pytest.raises(UserError, match=wrong):
            actions.generate_texts(folder, ["the"], dtype="float32", checkpoint=choice)
    assert actions.export_run(folder, tmp_path / "out", checkpoint="8") == 0
    ours, handed_on = load(folder, 8), pretrained.load(tmp_path / "out")
    ids = jax.numpy.array([[3, 1, 4, 1, 5]])
    logits = [jax.jit(one.model.apply)({"params": one.params}, ids) for one in (ours, handed_on)]
    assert (logits[0] == logits[1]).all()
    assert handed_on.tokenizer.sha256 == pretrained.load(folder).tokenizer.sha256
    with pytest.raises(UserError, match="not an earlier export"):
        actions.export_run(folder, folder)


@pytest.mark.slow
def test_the_evaluator_measures_what_a_plain_forward_pass_does(tiny: Config) -> None:
    """The whole validation split, by the run's evaluator and by one plain forward pass."""
    from lmjax.data.store import preparation

    parts = build.build(tiny, preparation.prepare(tiny.data, report=Console().report))
    state = build.init(parts)
    ids = parts.store.validation.ids.astype(int)
    total, context = 0.0, tiny.model.context
    for start in range(0, len(ids) - 1, context):
        window = ids[start : start + context + 1]
        logits = parts.model.apply({"params": state.params}, window[None, :-1])
        log_p = jax.nn.log_softmax(logits[0])
        total -= float(sum(log_p[i, target] for i, target in enumerate(window[1:])))
    measured = validation.evaluator(parts)(state, True)
    assert measured["val_loss"] == pytest.approx(total / (len(ids) - 1), rel=1e-5)
    text_bytes = parts.store.validation.bytes - 1  # the first byte is not predicted
    assert measured["val_bits_per_byte"] == pytest.approx(total / 0.6931471805599453 / text_bytes, rel=1e-5)


@pytest.mark.slow
def test_chosen_updates_are_traced_with_readable_names(tiny: Config, tmp_path: Path) -> None:
    assert launch.start(apply_overrides(tiny, ["train.profile=(2,3)"]), tmp_path / "run") == 0
    traces = list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("run_dir", "problem"),
    [("gs://bucket/run", "is a remote address"), ("x" * 60 + "/y" * 1900, "leave room"), ("n" * 300, "too long")],
)
def test_a_name_that_cannot_hold_a_run_is_refused_first(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_dir: str, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=problem):
        launch.start(tiny, Path(run_dir))
    assert list(tmp_path.iterdir()) == []
