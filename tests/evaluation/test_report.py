"""Scores against NumPy, the harness and the jackknife; the report, written, read back and drawn."""

import importlib.util
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmjax.config import UserError
from lmjax.display.console import Console
from lmjax.evaluation import report, shot_curves, task_metrics
from lmjax.evaluation.results import Result, Sample
from lmjax.tasks.spec import TaskConfig

TASKS = {
    "colours": TaskConfig(name="colours", kind="choose", chance=0.25),
    "words": TaskConfig(name="words", kind="generate", filters=(r"\w+",)),
    "prose": TaskConfig(name="prose", kind="perplexity"),
}


@pytest.fixture(scope="module")
def result() -> Result:
    """Three tasks: one with 0 and 5 examples and two seeds, one with words of many scripts, and texts."""
    random = np.random.default_rng(0)
    samples = []
    for shots, seeds in ((5, (0, 1)), (0, (0,))):  # not in order: the scores are
        for seed in seeds:
            for i in range(40):
                logprobs = (-8 * random.random(4)).tolist()
                measures = task_metrics.choose(logprobs, ("a", "b", "c", "d"), gold=i % 4)
                responses = tuple((value, value > -1) for value in logprobs)
                samples.append(Sample("colours", f"c{i}", shots, seed, "Which?", "a", responses, measures))
    for i, (text, answer) in enumerate([("één", "EEN"), ("日本\u2028", "日本"), ('a "b"', "a")]):
        measures = task_metrics.generate(text, [answer], filters=TASKS["words"].filters)
        samples.append(Sample("words", str(i), 1, 0, "$x$\n->", answer, (text,), measures))
    for i in range(400):
        text, tokens = "word " * int(random.integers(5, 60)), int(random.integers(5, 80))
        measures = task_metrics.perplexity(-2.0 * tokens + float(random.normal(0, 8)), text, tokens=tokens)
        samples.append(Sample("prose", str(i), 0, 0, "", text, ((measures["logprob"], False),), measures))
    return Result("a model", tuple(samples), TASKS, {"shots": [0, 5], "limit": None}, {"colours": 100})


def test_means_and_their_errors(result: Result) -> None:
    scores = result.scores()
    assert list(scores) == [("colours", 0), ("colours", 5), ("words", 1), ("prose", 0)]
    for name in ("acc", "brier"):
        plain = np.array([s.metrics[name] for s in result.samples if (s.task, s.shots) == ("colours", 0)])
        found = scores["colours", 0][name]
        assert (found.value, found.stderr) == pytest.approx((plain.mean(), plain.std(ddof=1) / np.sqrt(40)))
        assert (found.count, found.spread) == (40, None)

        seeds = np.array([s.metrics[name] for s in result.samples if (s.task, s.shots) == ("colours", 5)])
        seeds = seeds.reshape(2, 40)
        found = scores["colours", 5][name]
        assert found.value == pytest.approx(seeds.mean())
        assert found.stderr == pytest.approx(seeds.mean(0).std(ddof=1) / np.sqrt(40))  # documents, not samples
        assert (found.count, found.spread) == (40, pytest.approx(abs(seeds[0].mean() - seeds[1].mean()) / np.sqrt(2)))


def test_means_are_those_of_the_harness(result: Result) -> None:
    harness = pytest.importorskip("lm_eval.api.metrics")
    plain = [s.metrics["acc"] for s in result.samples if (s.task, s.shots) == ("colours", 0)]
    found = result.scores()["colours", 0]["acc"]
    assert (found.value, found.stderr) == pytest.approx((harness.mean(plain), harness.mean_stderr(plain)), rel=1e-12)


def test_perplexities_and_their_errors(result: Result) -> None:
    measured = [s.metrics for s in result.samples if s.task == "prose"]
    logprobs = np.array([m["logprob"] for m in measured])
    for name, found in result.scores()["prose", 0].items():
        units = np.array([m[task_metrics.UNITS[name]] for m in measured])

        def value(logprob: float, count: float, name: str = name) -> float:
            return -logprob / count / np.log(2) if name == "bits_per_byte" else np.exp(-logprob / count)

        assert found.value == pytest.approx(value(logprobs.sum(), units.sum()), rel=1e-12)
        left_out = np.array(
            [value(logprobs.sum() - lp, units.sum() - n) for lp, n in zip(logprobs, units, strict=True)]
        )
        jackknife = np.sqrt(399 / 400 * np.sum((left_out - left_out.mean()) ** 2))
        assert found.stderr == pytest.approx(jackknife, rel=0.03)  # both are of first order in 1 / 400


def test_what_is_written_is_read_back(result: Result, tmp_path: Path) -> None:
    path = tmp_path / "new" / "found.json"
    assert report.write_json(result, path, samples=True) == [path, path.with_name("found.samples.jsonl")]
    assert report.read_json(path) == result
    assert len(path.with_name("found.samples.jsonl").read_bytes().splitlines()) == len(result.samples)

    broken = replace(result.samples[0], metrics={"acc": float("nan")})  # of a model that has diverged
    report.write_json(replace(result, samples=(broken,)), path, samples=True)
    assert np.isnan(report.read_json(path).samples[0].metrics["acc"])
    report.write_json(result, path, samples=True)
    path.with_name("found.samples.jsonl").write_text("")
    with pytest.raises(UserError, match="has the samples of another result"):
        report.read_json(path)
    path.with_name("found.samples.jsonl").unlink()
    bare = tuple(replace(sample, prompt="", target="", responses=()) for sample in result.samples)
    assert report.read_json(path) == replace(result, samples=bare)
    report.write_json(result, path)
    assert report.read_json(path).scores() == result.scores()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"lmjax": {}}', '{"results": {}, "lmjax": {"tasks": {"a": {"b": 1}}}}']
)
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the results .*: No such file"):
        report.read_json(tmp_path / "missing.json")
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(UserError, match=r"is not a file of results|is not JSON"):
        report.read_json(tmp_path / "other.json")


def test_the_report_has_the_shape_of_the_harness(result: Result) -> None:
    tree = json.loads(json.dumps(report.to_dict(result)))
    keys = {"colours@0", "colours@5", "words", "prose"}
    for part in ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "group_subtasks"):
        assert set(tree[part]) == keys
    scores = result.scores()["colours", 5]
    entry = tree["results"]["colours@5"]
    assert (entry["alias"], entry["acc,none"], entry["acc_stderr,none"]) == (
        "colours",
        scores["acc"].value,
        scores["acc"].stderr,
    )
    assert tree["n-shot"] == {"colours@0": 0, "colours@5": 5, "words": 1, "prose": 0}
    assert tree["n-samples"]["colours@5"] == {"original": 100, "effective": 40}
    assert tree["higher_is_better"]["colours@0"]["brier"] is False
    assert tree["higher_is_better"]["colours@0"]["acc"] is True
    assert tree["config"] == {"model": "a model", "shots": [0, 5], "limit": None}


def test_the_harness_prints_our_report(result: Result) -> None:
    """In a process of its own: the harness's libraries fork, which a process with JAX's threads must not."""
    for package in ("pytablewriter", "lm_eval"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    script = "import json, sys; from lm_eval.utils import make_table; print(make_table(json.load(sys.stdin)))"
    table = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(report.to_dict(result)),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    ).stdout
    value = f"{result.scores()['colours', 5]['acc'].value:.4f}"
    lines = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()]
    assert any(line[3:6] == ["none", "5", "acc"] and value in line for line in lines)


def test_the_table(result: Result) -> None:
    file = io.StringIO()
    report.print_report(result, Console(file, width=100))
    rows = [line.split() for line in file.getvalue().splitlines()]
    scores = result.scores()
    five, plain = scores["colours", 5]["acc"], scores["colours", 0]["brier"]
    assert five.spread is not None
    numbers = [f"{number:.3f}" for number in (five.value, five.stderr, five.spread, 0.25)]
    assert ["colours", "5", "acc", *numbers, "40"] in rows
    assert ["colours", "0", "brier", f"{plain.value:.3f}", f"{plain.stderr:.3f}", "-", "40"] in rows


def test_one_document_has_no_error(result: Result) -> None:
    one = replace(result, samples=tuple(s for s in result.samples if s.id == "c0" and s.shots == 0))
    tree = report.to_dict(one)
    assert tree["results"]["colours"]["acc_stderr,none"] == "N/A"
    assert tree["lmjax"]["scores"][0]["stderr"] == "N/A"
    assert len(shot_curves.figure([one]).axes) == 1


def test_the_picture(result: Result, tmp_path: Path) -> None:
    path = shot_curves.draw([result, replace(result, model="$other")], tmp_path / "new" / "shots.png")
    assert path.read_bytes()[:4] == b"\x89PNG"

    figure = shot_curves.figure([result])
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["colours", "words", "prose"]
    colours, _, prose = figure.axes
    (container,) = colours.containers
    points, _, (bars,) = container.lines
    scores = [result.scores()["colours", shots]["acc"] for shots in (0, 5)]
    assert points.get_xydata().tolist() == [[0, scores[0].value], [5, scores[1].value]]
    ends = [segment[:, 1] for segment in bars.get_segments()]
    expected = [(score.value - score.stderr, score.value + score.stderr) for score in scores]
    np.testing.assert_allclose(ends, expected)
    assert colours.get_lines()[-1].get_ydata() == [0.25, 0.25]  # chance
    assert colours.get_xticks().tolist() == [0, 5]
    assert prose.get_ylabel() == "bits per byte"
    with pytest.raises(UserError, match="nothing to draw"):
        shot_curves.figure([replace(result, samples=())])


# ---- Truncation, groups and facts -----------------------------------------------------------------------------------


def grouped() -> Result:
    """Two tasks of a group with 2 and 6 documents, one of them in a group inside it."""
    tasks = {
        "small": TaskConfig(name="small", kind="match", group="all"),
        "large": TaskConfig(name="large", kind="match", group="all/part"),
    }
    values = {"small": [1.0, 1.0], "large": [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]}
    samples = tuple(
        Sample(task, str(i), 0, 0, "p", "t", (), {"exact_match": value}, truncated=3 * i, answer_truncated=i % 2)
        for task, numbers in values.items()
        for i, value in enumerate(numbers)
    )
    facts = {"first_token": "<s>", "unreachable": {"large": {"stop": 2}}, "not_computed": {"small": ["bleurt"]}}
    facts |= {"dropped": {"small": 3}, "first_rows": {"large": 100_000}}
    return Result("model", samples, tasks, {}, {}, facts)


def test_the_means_of_a_group_are_over_tasks_and_over_documents() -> None:
    result = grouped()
    macro, micro = result.group_scores()["all", 0]["exact_match"]
    assert (macro.value, macro.count) == (pytest.approx((1 + 1 / 6) / 2), 8)
    large = np.array([0, 1, 0, 0, 0, 0])
    assert macro.stderr == pytest.approx(large.std(ddof=1) / np.sqrt(6) / 2)  # the small task does not vary
    assert (micro.value, micro.count) == (pytest.approx(3 / 8), 8)
    assert micro.stderr == pytest.approx(np.array([1, 1, *large]).std(ddof=1) / np.sqrt(8))
    part, _ = result.group_scores()["all/part", 0]["exact_match"]
    assert part == result.scores()["large", 0]["exact_match"]
    tree = report.to_dict(result)
    assert tree["groups"]["all@0"]["exact_match,none"] == micro.value
    assert tree["groups"]["all@0"]["exact_match,macro"] == macro.value
    assert tree["group_subtasks"]["all@0"] == ["small", "large"]
    assert tree["group_subtasks"]["all/part@0"] == ["large"]


def test_what_was_cut_and_what_is_missing_is_printed_written_and_read(tmp_path: Path) -> None:
    result, file = grouped(), io.StringIO()
    report.print_report(result, Console(file, width=160))
    printed = file.getvalue()
    assert (
        "large at 0 shots: the prompt was truncated to the context for 5 of 6 documents, by up to 15 tokens" in printed
    )
    assert (
        "small at 0 shots: the answer was truncated to the context for 1 of 2 documents, by up to 1 tokens" in printed
    )
    assert "no generated text can equal the answers of some documents: 2 contain a stop" in printed
    assert "metrics of the task that are not computed: bleurt" in printed
    assert "small: 3 rows have no text and are left out" in printed
    assert "large: only the first 100,000 rows were read; the task has more" in printed
    assert "all (macro)" in printed
    assert [line.split()[:3] for line in printed.splitlines() if line.lstrip().startswith("all/part")] == [
        ["all/part", "(one", "task)"]
    ]
    assert printed.splitlines()[2].split()[-1] == "cut"
    report.write_json(result, tmp_path / "a.json")
    own = json.loads((tmp_path / "a.json").read_text())["lmjax"]
    assert own["first_token"] == "<s>"
    assert own["truncated"][1] == {
        "task": "large",
        "shots": 0,
        "documents": 6,
        "prompts": 5,
        "prompt_tokens": 15,
        "answers": 3,
        "answer_tokens": 1,
    }
    read = report.read_json(tmp_path / "a.json")
    assert (read.facts, read.truncations()) == (result.facts, result.truncations())


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    task = TaskConfig(name="t", kind="perplexity")
    samples = tuple(
        Sample("t", str(i), 0, 0, "p", "", ((logprob, False),), task_metrics.perplexity(logprob, "x", tokens=1))
        for i, logprob in enumerate([-2000.0, float("-inf"), float("nan")])
    )
    for some in (samples[:1], samples):  # exp(2000) is too large for a float
        report.write_json(Result("m", some, {"t": task}), tmp_path / "a.json", samples=True)
        for name in ("a.json", "a.samples.jsonl"):
            for line in (
                (tmp_path / name).read_text().splitlines() if name.endswith("l") else [(tmp_path / name).read_text()]
            ):
                json.loads(line, parse_constant=refuse)
        assert len(report.read_json(tmp_path / "a.json").samples) == len(some)
