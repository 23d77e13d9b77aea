"""In-context evaluation inside a run: which items it asks for, what it records, what it draws."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lmjax.config import EvaluateConfig, InContextConfig, UserError, presets
from lmjax.config.codec import apply_overrides
from lmjax.evaluation import evaluator, in_training, scoring, shot_curves
from lmjax.evaluation.results import Result, Sample
from lmjax.inference.generate import NotFinite
from lmjax.run import launch
from lmjax.tasks.draws import held_out
from lmjax.tasks.spec import TaskConfig

SMALL = (
    "data.in_context.documents=300",
    "model.layers=1",
    "model.width=16",
    "model.mlp_width=16",
    "train.updates=2",
    "train.evaluate_every=1",
    "train.evaluate_batches=1",
    "train.final_batches=1",
    "train.baselines=false",
    "evaluate.shots=[0,4]",
    "evaluate.limit=10",
    "checkpoint.every=0",
)


def test_only_what_a_run_never_saw_is_asked() -> None:
    trained_on = InContextConfig(tasks=("random_map", "copying"), held_out=("copying",), held_out_share=0.25)
    maps, copying = in_training.load(["random_map", "copying"], trained_on)
    for document in maps.documents[:50]:
        shown = [f"{one.prompt} {one.answers[0]}" for one in (document, *document.examples)]
        assert all(held_out(pairing, 0.25) for pairing in shown)
    everything = in_training.load(["copying"], None)[0]  # a task that was never rendered may be asked whole
    assert [document.prompt for document in copying.documents] == [d.prompt for d in everything.documents]


def test_a_task_that_a_run_saw_is_known_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its items are held out however its path is written: relative, absolute, or from another folder."""
    rows = [{"input": str(i), "answer": str(i % 7)} for i in range(60)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    trained_on = InContextConfig(tasks=(str(tmp_path / "mine.jsonl"),), held_out_share=0.25)
    monkeypatch.chdir(tmp_path)
    for name in ("mine.jsonl", "./mine.jsonl", str(tmp_path / "mine.jsonl")):
        (task,) = in_training.load([name], trained_on)
        assert 0 < len(task.documents) < 40
        assert all(held_out(document.key, 0.25) for document in task.documents)
    (complete,) = in_training.load(["mine.jsonl"], None)
    assert len(complete.documents) == 60


def test_a_line_for_each_number_of_examples_and_a_panel_for_each_task() -> None:
    columns = {
        "update": np.array([1.0, 2.0, 3.0]),
        "val_loss": np.array([3.0, 2.0, 1.0]),
        "val_b_8_shot": np.array([0.1, np.nan, 0.9]),
        "val_b_0_shot": np.array([0.1, 0.1, 0.1]),
        "val_a_1_shot": np.array([0.5, 0.5, 0.5]),
    }
    figure = shot_curves.emergence(columns)
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b"]
    few = figure.axes[1].get_lines()
    assert [line.get_label() for line in few] == ["0", "8"]
    np.testing.assert_array_equal(few[1].get_xydata(), [[1, 0.1], [3, 0.9]])
    assert shot_curves.emergence({"update": np.array([1.0]), "val_loss": np.array([1.0])}) is None


@pytest.mark.slow
def test_a_run_records_and_draws_what_it_learns_in_context(tmp_path: Path) -> None:
    config = apply_overrides(presets.load("in_context"), [*SMALL, f"data.cache={tmp_path / 'cache'}"])
    assert launch.start(config, tmp_path / "run") == 0
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    measured = [record for record in records if "val_loss" in record]
    assert [record["update"] for record in measured] == [1, 2]
    assert all(0 <= record[f"val_random_map_{k}_shot"] <= 1 for record in measured for k in (0, 4))
    assert (tmp_path / "run/plots/shots.png").is_file()
    assert "val_random_map_4_shot" in json.loads((tmp_path / "run/summary.json").read_text())


def test_a_task_that_fails_has_no_score_and_the_others_have_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation does not end a run: neither numbers that are not finite nor another error."""
    scores = {"a": 0.5, "b": NotFinite(), "c": UserError("the filter took too long"), "d": scoring.NoScore(0)}

    def evaluate(lm: Any, tasks: Any, settings: Any) -> Any:
        values = [scores[task.config.name] for task in tasks]
        for value in values:
            if isinstance(value, UserError):
                raise value
        metrics = {"exact_match": SimpleNamespace(value=values[0])}
        name, facts = tasks[0].config.name, {}
        return SimpleNamespace(scores=lambda: {(name, 1): metrics}, truncations=list, facts=facts)

    monkeypatch.setattr(evaluator, "evaluate", evaluate)
    tasks: Any = [SimpleNamespace(config=TaskConfig(name=name, kind="generate")) for name in scores]
    lines: list[str] = []
    lm: Any = None
    measured = in_training.measure(lm, tasks, EvaluateConfig(shots=(1,)), lines.append)
    assert list(measured) == [f"val_{name}_1_shot" for name in scores]
    np.testing.assert_array_equal([*measured.values()], [0.5, np.nan, np.nan, np.nan])
    assert lines == ["the filter took too long; the metrics of the task are NaN"]


def test_what_a_run_did_not_measure_is_a_line_and_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that were cut are counted next to the score, as in `lmjax evaluate`."""
    task = TaskConfig(name="a", kind="generate")
    measured = {"exact_match": 1.0, "f1": 1.0}
    samples = [Sample("a", str(i), 8, 0, "", "", ("",), metrics=measured, truncated=5 * i) for i in range(4)]
    result = Result("model", tuple(samples), {"a": task}, facts={"unreachable": {"a": {"stop": 2}}})
    monkeypatch.setattr(evaluator, "evaluate", lambda *arguments: result)
    lines: list[str] = []
    loaded: Any = [SimpleNamespace(config=task)]
    lm: Any = None
    scores = in_training.measure(lm, loaded, EvaluateConfig(shots=(8,)), lines.append)
    assert scores == {"val_a_8_shot": 1.0, "val_a_8_shot_truncated": 3.0}
    assert any("truncated to the context for 3 of 4 documents, by up to 15 tokens" in line for line in lines)
    assert any("2 contain a stop" in line for line in lines)
    assert shot_curves.emergence({"update": np.array([1.0]), "val_a_8_shot_truncated": np.array([3.0])}) is None
    forged = f"val_a_{'9' * 5000}_shot"  # more digits than Python converts
    assert shot_curves.emergence({"update": np.array([1.0]), forged: np.array([3.0])}) is None


def test_a_task_that_leaves_no_space_for_its_prompts_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    config = apply_overrides(presets.load("in_context"), ["evaluate.tasks=[copying]", "model.context=24"])
    with pytest.raises(UserError, match=r"'copying' generates max_tokens = 24 tokens, .* model\.context=24"):
        launch.start(config, tmp_path / "run")
    (copying,) = in_training.load(["copying"], None)
    with pytest.raises(UserError, match="two tasks have the name 'copying', which names their metrics"):
        in_training.check([copying, copying], 25)
    in_training.check([copying], 25)
    in_training.check([copying], None)


def test_a_task_that_does_not_exist_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    config = apply_overrides(presets.load("in_context"), ["evaluate.tasks=[coping]"])
    with pytest.raises(UserError, match="did you mean 'copying'"):
        launch.start(config, tmp_path / "run")
