"""A resume with another length: the learning rate is announced, and the run stays a function of its configuration."""

import dataclasses
import json
from pathlib import Path

import pytest

from lmjax.config import Config, UserError
from lmjax.config.codec import apply_overrides
from lmjax.diagnose import audit
from lmjax.journal import journal
from lmjax.journal.history import History
from lmjax.run import build, extension, launch, plan, resume
from lmjax.training import metrics

SMALL = ("data.tokenizer.kind=bytes", "model.layers=1", "model.width=64", "model.heads=2", "model.context=32")
BASE = ("batch.tokens=1024", "schedule.peak=0.001", "schedule.warmup=0.0", "train.updates=760", *SMALL)


def config(*changes: str) -> Config:
    return apply_overrides(Config(), [*BASE, *changes])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (("train.updates=5000",), "1.0e-04 -> 9.5e-04, because the cosine now ends at 5000"),
        (
            ("train.updates=5000", "schedule.on_extend=rewarm", "schedule.warmup=0.05"),
            "1.0e-04 -> 1.0e-04, because schedule.warmup is 0.0 -> 0.05 and the cosine rises again from there "
            "and ends at 5000",
        ),
        (
            ("train.updates=5000", "schedule.on_extend=restart"),
            "1.0e-04 -> 1.0e-03, because the cosine starts again and ends at 5000",
        ),
    ],
)
def test_the_change_of_the_learning_rate_is_said(changes: tuple[str, ...], line: str) -> None:
    """The first: 1e-3 (0.1 + 0.9 (1 + cos(pi 760 / 4999)) / 2) is 9.5e-4; the warm-up takes one update."""
    run = extension.extend(build.without_data(config(*changes)), config(), 760)
    assert extension.describe(run, config(), 760, ()) == f"learning rate at update 761: {line}"


def test_the_cuts_of_the_guard_count_and_an_equal_rate_is_not_said() -> None:
    run = build.without_data(config("train.evaluate_every=10"))
    assert extension.describe(run, config(), 300, ()) == ""
    longer = build.without_data(config("train.updates=5000"))
    cut = extension.describe(longer, config(), 300, ((300, 0.5, 10),))
    rates = [build.without_data(c).rates[300] / 2 for c in (config(), config("train.updates=5000"))]
    assert cut.startswith(f"learning rate at update 301: {rates[0]:.1e} -> {rates[1]:.1e}, because")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("train.updates=560",), "train.updates=560: the run has 645 updates already; raise it"),
        (("train.tokens=102400",), "train.tokens=102400: the run has 645 updates already, and this gives it 100"),
        (("batch.tokens=2048", "train.tokens=778240"), "the run has 645 updates already, and this gives it 380"),
    ],
)
def test_fewer_updates_than_applied_are_refused_in_one_line(changes: tuple[str, ...], message: str) -> None:
    run = build.without_data(config(*(["train.updates=0"] if "train.updates" not in changes[0] else []), *changes))
    with pytest.raises(UserError, match=message) as refused:
        extension.check_length(run, config(), History(saved={600, 645}))
    assert "\n" not in str(refused.value)
    extension.check_length(run, config(), History(saved={50, run.plan.updates}))


def test_the_plan_of_a_resume_is_that_of_the_rest() -> None:
    run = build.without_data(config("train.updates=1000", "train.evaluate_every=100", "checkpoint.every=300"))
    tables = {table.title: table.rows for table in plan.tables(run, 760)}
    rows = dict(tables["Run, after update 760"])
    assert rows["updates"] == "240 of 1,000"
    assert rows["tokens"] == f"{240 * 1024:,} of {1000 * 1024:,}"
    assert rows["checkpoints"].startswith("2:")  # 900 and the end
    assert rows["evaluations"].startswith("3:")  # 800, 900 and the end
    assert [row[0] for row in tables["Milestones"]] == ["761", "1,000"]


@pytest.mark.slow
def test_an_extended_run_has_the_bits_of_a_fresh_run_with_its_configuration(
    tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Extended in the middle, after a stop, and resumed once more: the entry is in config.json from then on."""
    longer = dataclasses.replace(tiny.train, updates=20)
    schedule = dataclasses.replace(tiny.schedule, on_extend="rewarm")
    assert launch.start(tiny, tmp_path / "run") == 0
    shorter = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, updates=8))
    with pytest.raises(UserError, match=r"train\.updates=8: the run has 12 updates already"):
        resume.resume(shorter, tmp_path / "run", allow=["train.updates"])
    capsys.readouterr()
    extended = dataclasses.replace(tiny, train=longer, schedule=schedule)
    assert resume.resume(extended, tmp_path / "run", allow=["train.updates"]) == 0
    assert "learning rate at update 13: 1.0e-03 -> " in capsys.readouterr().out
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["schedule"]["extended"] == [[12, 12, "rewarm"]]
    fresh = apply_overrides(extended, ['schedule.extended=[[12, 12, "rewarm"]]'])
    assert launch.start(fresh, tmp_path / "fresh") == 0
    digests = [journal.read(tmp_path / name / "journal.jsonl")[-1]["digest"] for name in ("run", "fresh")]
    assert digests[0] == digests[1]
    rates = [
        [record["learning_rate"] for record in metrics.read(tmp_path / name / "metrics.jsonl") if "loss" in record]
        for name in ("run", "fresh")
    ]
    assert rates[0] == rates[1]
    assert audit.show(tmp_path / "run") == 0
