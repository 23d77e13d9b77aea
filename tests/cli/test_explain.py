"""`lmjax explain`, `--help KEY`, and the configuration with comments."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from lmjax.cli import explain, train
from lmjax.cli import main as cli
from lmjax.config import UserError, presets

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """A command in this process: exit status, standard output and error."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(main: Callable, *words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(words)
        return left.value.code or 0, *capsys.readouterr()

    return call


def test_a_key_is_explained_with_its_type_default_range_and_presets(command: Command) -> None:
    status, printed, _ = command(cli.main, "explain", "schedule.peak")
    assert status == 0
    lines = printed.splitlines()
    assert lines[:5] == [
        "schedule.peak", "  Highest learning rate.", "  type     number", "  default  0.0006", "  range    > 0",
    ]  # fmt: skip
    (quickstart,) = [line for line in lines if re.search(r" 0\.003 by ", line)]
    assert presets.load("quickstart").schedule.peak == 0.003
    assert "facts" in quickstart
    assert not any("gpt2_124m" in line for line in lines)  # it has the default


def test_a_key_of_several_families_is_explained_for_each() -> None:
    text = explain.explanation("model.layers")
    assert "model.layers with model.family=gpt or bert" in text
    assert "Number of layers of the encoder, and of the decoder." in text
    assert "  set to   48 by gpt2_1558m\n" in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("schedule", ["schedule: The learning rate over the run.", "schedule.warmup=0.005", "schedule.shape=cosine"]),
        ("parallel.mesh", ["parallel.mesh.fsdp=1"]),
        ("objective", ["objective.family=dpo", "Direct preference optimization", "objective.family=causal"]),
        ("objective.family", ["objective.family=dpo"]),
        ("objective.family=dpo", ["objective.beta=0.1"]),
        ("objective.family=grpo", ["objective.group=8", "One of several families (`lmjax explain objective.reward`)."]),
        ("objective.reward", ["objective.reward.family=number"]),
        ("objective.reward.family=number", ["objective.reward.tolerance=0.0"]),
        ("data.mixture", ["list of (source, files, weight, text_field)"]),
        ("train.expect", ["list of (text, number, number)"]),
        ("data.tokenizer.strip_accents", ["true or false, or none"]),
        ("optimizer.name", ["adamw, adam, lion, adafactor or muon, or a registered name"]),
        (
            "quickstart",
            ["Hardware: any CPU", "  train.updates=600", "  optimizer.name=muon", "  data.validation_fraction"],
        ),
        ("ppo", ["  objective.family=ppo", "  data.family=chat"]),
    ],
)
def test_what_else_is_explained(name: str, expected: list[str]) -> None:
    text = " ".join(explain.explanation(name).split())
    assert [part for part in expected if " ".join(part.split()) not in text] == []


def test_without_a_name_all_groups_are_listed(command: Command) -> None:
    status, printed, _ = command(cli.main, "explain")
    assert status == 0
    for word in ("seed=0", "data.family=chat", "model.family=rnn", "objective.family=ppo", "guard", "track"):
        assert re.search(rf"^{re.escape(word)} ", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("batch_size", "unknown key 'batch_size'; use batch.tokens (tokens of an update) and batch.microbatch"),
        ("schedule.paek", "unknown key 'schedule.paek'; did you mean 'schedule.peak'?"),
        ("gpt2", "unknown config 'gpt2'; did you mean 'gpt2_124m', 'gpt2_350m'"),
        ("gate", "unknown key 'gate'; `lmjax explain` lists the keys"),
        ("model.family=gtp", "unknown key 'model.family=gtp'"),
        ("nothing.py", "no such config file: nothing.py"),
    ],
)
def test_an_unknown_name_gets_the_advice_of_a_change(name: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        explain.explanation(name)


def test_the_name_of_another_tool_is_explained_as_the_key() -> None:
    assert explain.explanation("lr") == f"lr: the name of another tool for\n{explain.explanation('schedule.peak')}"


@pytest.mark.parametrize("words", [("plan", "--help"), ("train", "-h")])
def test_help_explains_a_key(command: Command, words: tuple[str, ...]) -> None:
    status, printed, _ = command(cli.main, *words, "batch.microbatch")
    assert (status, printed) == (0, explain.explanation("batch.microbatch") + "\n")
    status, _, error = command(cli.main, *words, "schedule.lr")
    assert (status, error) == (2, "error: unknown key 'schedule.lr'; use schedule.peak\n")
    assert "usage: lmjax" in command(cli.main, *words)[1]


def test_a_plan_for_other_devices_needs_a_length_that_does_not_depend_on_the_data(command: Command) -> None:
    status, _, error = command(cli.main, "plan", "quickstart", "train.epochs=2", "--topology", "v5e:2x2")
    assert (status, error.count("\n")) == (2, 1)
    assert "train.epochs = 2: --topology reads no data" in error


def test_names_of_other_tools_as_options_are_answered(command: Command) -> None:
    for words, message in (
        (
            ["--batch_size=4"],
            "settings are written key=value; for --batch_size=4 use batch.tokens (tokens of an update)",
        ),
        (["--learning-rate", "1"], "for --learning-rate use schedule.peak"),
        (["--gate"], "unrecognized arguments: --gate; settings are written key=value\n"),
    ):
        status, _, error = command(cli.train_main, *words)
        assert status == 2
        assert message in error


@pytest.mark.parametrize("name", presets.names())
def test_the_commented_configuration_reads_back(name: str, tmp_path: Path) -> None:
    config, path = presets.load(name), tmp_path / "settings.txt"
    path.write_text(explain.commented(config))
    assert train._load([f"@{path}"]) == config
    assert train._load(["gpt2_124m", f"@{path}", "seed=7"]).seed == 7


def test_the_comments_say_what_each_key_means(command: Command, tmp_path: Path) -> None:
    status, printed, _ = command(cli.train_main, "quickstart", "--print-config", "--comments")
    assert status == 0
    assert "\n\n# Highest learning rate. (number, default 0.0006, > 0)\nschedule.peak=0.003\n" in printed
    lines = [line for line in printed.splitlines() if line and not line.startswith("#")]
    assert presets.load("bert_tiny", [shlex.split(line)[0] for line in lines]) == presets.load("quickstart")
    (tmp_path / "bad.txt").write_text("name='a")
    for words, message in (
        ([f"@{tmp_path}/bad.txt"], "No closing quotation; quote values as for a shell"),
        ([f"@{tmp_path}/none.txt"], "no such config file"),
        (["--comments"], "--comments needs --print-config"),
    ):
        status, _, error = command(cli.train_main, *words)
        assert (status, error.count("\n")) == (2, 1)
        assert message in error
