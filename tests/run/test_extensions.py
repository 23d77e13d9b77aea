"""A run of a user's own family, objective, optimizer, schedule, source, metric and callback.

The files are the examples of the guide.
"""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import lmjax
from lmjax.config import Config, extensions, presets, user_files
from lmjax.config.codec import apply_overrides
from lmjax.config.errors import UserError
from lmjax.data.store.preparation import prepare
from lmjax.diagnose import audit
from lmjax.run import build, launch, saved
from tests import ROOT, small
from tests.faults import runs

EXAMPLES = ROOT / "examples"
ALL = ("conv_lm", "smooth", "nadam", "sqrt_decay", "sums", "notify")
CHANGES = (
    f"extensions=[{','.join(str(EXAMPLES / f'{name}.py') for name in ALL)}]",
    "model.family=conv",
    "objective.family=smooth",
    "optimizer.name=nadam",
    "schedule.shape=sqrt_decay",
    "train.metrics=[sums_right]",
    "train.callbacks=[notify]",
)


@pytest.fixture
def custom(corpus: Path) -> Config:
    """The small run of a family, with everything replaced by a user's."""
    sizes = ["model.width=16", "model.layers=1", "model.context=16", "model.dropout=0.1"]
    return apply_overrides(replace(small.config("nnlm", corpus), name="custom"), [*CHANGES, *sizes])


@pytest.mark.slow
def test_it_is_stopped_resumed_rolled_back_and_used(custom: Config, tmp_path: Path) -> None:
    """SIGTERM, then batches with bad numbers that recur: replay and skip, and the bits of a run without the data."""
    folder = tmp_path / "run"
    assert runs.start(custom, folder, "update=SIGTERM@13 data=nan@160-175!") == 0
    assert runs.summary(folder)["status"] == "stopped"
    assert runs.resume(folder, "data=nan@160-175!") == 0
    assert [record["kind"] for record in runs.records(folder, "rollback")] == ["replay", "skip"]
    fresh = runs.without(folder, custom, tmp_path / "fresh")
    assert runs.losses(fresh) == runs.losses(folder)
    assert runs.digest(fresh) == runs.digest(folder)
    assert audit.show(folder) == 0

    files = sorted(path.name for path in (folder / "extensions").rglob("*.py"))
    assert files == ["conv_lm.py", "nadam.py", "notify.py", "smooth.py", "sqrt_decay.py", "sums.py"]
    evaluations = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {0.0} == {record["val_sums_right"] for record in evaluations if "val_loss" in record}
    notes = (folder / "notes.txt").read_text().splitlines()
    assert notes[-1].startswith("end after update 32: ")
    assert [line.split(":")[0] for line in notes[:-1]][-1] == "evaluation after update 32"

    lm = lmjax.load(folder)
    assert (
        lmjax.generate(lm, "the cat", max_tokens=4, temperature=0)
        == lmjax.generate(lm, ["a", "the cat"], max_tokens=4, temperature=0)[1]
    )
    assert set(lmjax.evaluate(lm, ["copying"], shots=(0, 1), limit=2, max_tokens=8).tasks) == {"copying"}


@pytest.mark.slow
def test_the_command_line_finds_it_in_a_process_of_its_own(custom: Config, tmp_path: Path) -> None:
    """Trained by train.py, killed, resumed, continued and evaluated, each in a process that knows only the run."""
    words = (*CHANGES[:1], "model.family=conv", "model.width=16", "model.context=32", "train.updates=12")
    folder = tmp_path / "run"
    short = ("checkpoint.every=4", "train.sample_tokens=4", "train.final_batches=2", "train.baselines=false")
    killed = runs.train_py("quickstart", *words, *short, "--run-dir", folder, fault="update=kill@7")
    assert killed.returncode == -9, killed.stderr
    resumed = runs.train_py("--resume", folder)
    assert resumed.returncode == 0, resumed.stderr
    clean = runs.train_py("quickstart", *words, *short, "--run-dir", tmp_path / "clean")
    assert clean.returncode == 0, clean.stderr
    assert runs.digest(folder) == runs.digest(tmp_path / "clean")
    for words in (
        ["generate", folder, "--prompt", "Return", "--max-tokens", "4"],
        ["evaluate", folder, "--tasks", "copying", "--shots", "0", "--limit", "2"],
        ["plan", folder / "config.json"],
    ):
        refused = runs.command("-m", "lmjax", *words)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "lists Python files that this command would execute" in refused.stderr
        used = runs.command("-m", "lmjax", *words, "--allow-extensions")
        assert used.returncode == 0, used.stderr


@pytest.mark.slow
def test_a_changed_file_is_refused_by_a_resume_and_allowed_by_name(custom: Config, tmp_path: Path) -> None:
    path = tmp_path / "copy" / "plain.py"
    path.parent.mkdir()
    path.write_text("import lmjax, optax\nlmjax.register_optimizer('plain', lambda config: optax.identity())\n")
    own = ["train.updates=4", "train.metrics=[]", "train.sample_tokens=0", "train.evaluate_every=0"]
    config = apply_overrides(custom, [f"extensions=[{path}]", "optimizer.name=plain", *own])
    folder = tmp_path / "run"
    assert runs.start(config, folder) == 0
    path.write_text(path.read_text() + "# another version\n")
    with user_files.consent():
        longer = presets.load(str(folder / "config.json"), ["train.updates=6"])
    with pytest.raises(
        UserError, match=r"another configuration .*extensions: .*plain.py changed.*--allow-change extensions"
    ):
        lmjax.resume(folder, "train.updates=6", allow=["train.updates"])
    lmjax.resume(folder, "train.updates=6", allow=["train.updates", "extensions"])
    assert runs.summary(folder)["updates"] == 6
    assert saved.saved_config(folder).extensions == extensions.recorded(longer)


@pytest.mark.slow
def test_the_smooth_loss_is_that_of_optax(corpus: Path) -> None:
    """`optax.smooth_labels` and `softmax_cross_entropy` on the same logits."""
    changes = [CHANGES[0], "objective.family=smooth", "objective.smoothing=0.2", "model.dropout=0"]
    config = apply_overrides(small.config("nnlm", corpus), changes)
    run = build.build(config, prepare(config.data))
    params, rows = small.rough(run.objective), small.rows(run.samples)
    sums = run.objective.loss(params, rows, train=True)
    logits_BTV = run.model.apply({"params": params}, rows["inputs_BT"])
    labels_BTV = optax.smooth_labels(jax.nn.one_hot(rows["targets_BT"], logits_BTV.shape[-1]), 0.2)
    loss_BT = optax.softmax_cross_entropy(logits_BTV, labels_BTV)
    assert float(sums.loss) == pytest.approx(float((loss_BT * rows["weights_BT"]).sum()), rel=1e-5)  # float32 sums
    assert float(sums.weight) == rows["weights_BT"].sum()


@pytest.mark.slow
def test_the_learning_rate_has_the_shape(custom: Config) -> None:
    """1 - (1 - final) sqrt(u) over the last `decay` of the run, Haegele et al. 2024, by hand at three updates."""
    custom = apply_overrides(custom, ["schedule.decay=0.5", "schedule.warmup=0", "schedule.final=0.1"])
    rates = build.build(custom, prepare(custom.data)).rates / custom.schedule.peak
    assert rates[[0, 15, 31]] == pytest.approx([1, 1, 0.1], rel=1e-6)
    assert rates[19] == pytest.approx(1 - 0.9 * np.sqrt(4 / 16), rel=1e-6)  # after 20 of 32 updates
    lmjax.register_schedule("below_zero", lambda progress, warmup, schedule: -progress)
    with pytest.raises(UserError, match=r"the share of the peak at update 1 is -0.03125; it must be >= 0"):
        build.check(apply_overrides(custom, ["schedule.shape=below_zero"]))


def test_documents_of_a_source_are_those_that_it_yields(custom: Config) -> None:
    config = apply_overrides(custom, ["data.files=[]", "data.source=sums"])
    store = prepare(config.data)
    assert store.manifest["sources"][0]["documents"] == 20_000
    tokens = store.sources[0]
    pairs = zip(tokens.starts[:200], tokens.starts[1:201], strict=True)
    parts = [np.asarray(tokens.ids[begin:end]) for begin, end in pairs]
    documents = [store.tokenizer.decode(ids[ids != store.tokenizer.end_of_text]) for ids in parts]
    read, _ = extensions.get("data.source", "sums")
    yielded = iter(read(config.data))
    assert len(documents) == 200
    # in this order: what is between them belongs to the validation split
    assert all(document in yielded for document in documents)


def test_rows_of_a_source_are_records(corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows_source.py"
    path.write_text(
        "import lmjax\n"
        "def rows(data):\n"
        "    for number in range(300):\n"
        "        yield {'text': f'row {number}', 'label': 'odd' if number % 2 else 'even'}\n"
        "lmjax.register_source('parity', rows)\n"
    )
    config = small.config("bert labels", corpus)
    changes = [f"extensions=[{path}]", "data.files=[]", "data.source=parity"]
    config = apply_overrides(config, changes)
    run = build.build(config, prepare(config.data))
    assert set(run.config.objective.labels) == {"odd", "even"}


@pytest.mark.slow
def test_a_callback_that_fails_is_reported_once_and_the_run_continues(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "failing.py"
    path.write_text("import lmjax\nlmjax.register_callback('failing', lambda event: event.nothing)\n")
    files = f"extensions=[{path},{EXAMPLES / 'notify.py'}]"
    changes = [files, "train.callbacks=[failing,notify]", "train.updates=3", "train.sample_tokens=0"]
    assert launch.start(apply_overrides(small.config("nnlm", corpus), changes), tmp_path / "run") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("the callback failing failed on 'checkpoint' (AttributeError") == 1
    assert "is not called again; training continues" in shown
    assert (tmp_path / "run" / "notes.txt").read_text().count("end after update 3") == 1


def test_a_model_without_segments_refuses_packed_data(custom: Config) -> None:
    with pytest.raises(UserError, match=r"data.packed=true: the model of model.family=conv takes no segments_BT"):
        build.check(apply_overrides(custom, ["data.packed=true"]))


BASE = """
from dataclasses import dataclass
from typing import Literal
import jax.numpy as jnp
import lmjax
from flax import linen as nn
from lmjax.config import CustomModelConfig
from lmjax.models.family import Family

@dataclass(frozen=True)
class BadConfig(CustomModelConfig):
    family: Literal["{name}"] = "{name}"

class Bad(nn.Module):
    config: BadConfig
    @nn.compact
    def __call__(self, ids_BT, *, train=False):
        x_BTD = nn.Embed(self.config.vocab_size, 8)(ids_BT)
        {body}

lmjax.register_family(BadConfig, Family(module=Bad))
"""


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("future", "return nn.Dense(self.config.vocab_size)(jnp.roll(x_BTD, -1, 1))", "changes logits before it"),
        ("mean", "return nn.Dense(self.config.vocab_size)(x_BTD - x_BTD.mean(1, keepdims=True))", "changes logits"),
        ("narrow", "return nn.Dense(100)(x_BTD)", r"returns float32 of shape \(1, 16, 100\)"),
        ("pooled", "return nn.Dense(self.config.vocab_size)(x_BTD[:, -1])", r"returns float32 of shape \(1, 257\)"),
        ("pair", "return x_BTD, x_BTD", "returns tuple"),
        ("half", "return nn.Dense(self.config.vocab_size)(x_BTD).astype(jnp.bfloat16)", "returns bfloat16"),
        ("raising", "raise ValueError('my bad')", r"\(Bad\) fails on token ids .*ValueError: my bad"),
        (
            "norms",
            "return nn.Dense(self.config.vocab_size)(nn.BatchNorm(use_running_average=True)(x_BTD))",
            "has variables in 'batch_stats'",
        ),
    ],
)
def test_a_model_that_breaks_the_contract_is_refused(
    name: str, body: str, message: str, corpus: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"{name}.py"
    path.write_text(BASE.format(name=f"bad_{name}", body=body))
    changes = [f"extensions=[{path}]", f"model.family=bad_{name}", "model.context=16"]
    config = apply_overrides(small.config("nnlm", corpus), changes)
    with pytest.raises(UserError, match=message):
        build.build(config, prepare(config.data))


@pytest.mark.slow
def test_a_metric_that_fails_leaves_the_others(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics_of_a_test.py"
    path.write_text(
        "import lmjax\nlmjax.register_metric('failing', lambda run: 1 / 0)\n"
        "lmjax.register_metric('updates', lambda run: run.update)\n"
    )
    changes = [f"extensions=[{path}]", "train.metrics=[failing,updates]", "train.updates=3", "train.sample_tokens=0"]
    assert launch.start(apply_overrides(small.config("nnlm", corpus), changes), tmp_path / "run") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "update 3: the metric failing failed (ZeroDivisionError: division by zero); it is left out" in shown
    end = runs.summary(tmp_path / "run")
    assert end["val_updates"] == 3
    assert end["val_loss"] > 0


@pytest.mark.slow
def test_a_program_that_trains_when_it_is_imported_is_refused(tmp_path: Path) -> None:
    start = "import lmjax\nlmjax.register_callback('of_a_program', print)\n"
    call = "lmjax.plan('quickstart', 'train.callbacks=[of_a_program]')\n"
    (tmp_path / "bare.py").write_text(start + call)
    refused = runs.command(tmp_path / "bare.py", environment={"PYTHONPATH": str(ROOT)}.items())
    assert "put this under `if __name__ ==" in refused.stderr
    (tmp_path / "guarded.py").write_text(start + "if __name__ == '__main__':\n    " + call)
    allowed = runs.command(tmp_path / "guarded.py", environment={"PYTHONPATH": str(ROOT)}.items())
    assert allowed.returncode == 0, allowed.stderr
