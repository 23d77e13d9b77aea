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
        return SimpleNamespace(scores=lambda: {(tasks[0].config.name, 1): metrics})

    monkeypatch.setattr(evaluator, "evaluate", evaluate)
    tasks: Any = [SimpleNamespace(config=TaskConfig(name=name, kind="generate")) for name in scores]
    lines: list[str] = []
    lm: Any = None
    measured = in_training.measure(lm, tasks, EvaluateConfig(shots=(1,)), lines.append)
    assert list(measured) == [f"val_{name}_1_shot" for name in scores]
    np.testing.assert_array_equal([*measured.values()], [0.5, np.nan, np.nan, np.nan])
    assert lines == ["the filter took too long; the metrics of the task are NaN"]


def test_a_task_that_leaves_no_space_for_its_prompts_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    config = apply_overrides(presets.load("in_context"), ["evaluate.tasks=[copying]", "model.context=24"])
    with pytest.raises(UserError, match=r"'copying' generates max_tokens = 24 tokens, .* model\.context=24"):
        launch.start(config, tmp_path / "run")
    (copying,) = in_training.load(["copying"], None)
    in_training.check([copying], 25)
    in_training.check([copying], None)


def test_a_task_that_does_not_exist_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    config = apply_overrides(presets.load("in_context"), ["evaluate.tasks=[coping]"])
    with pytest.raises(UserError, match="did you mean 'copying'"):
        launch.start(config, tmp_path / "run")
