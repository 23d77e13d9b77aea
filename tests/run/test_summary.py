"""The printed results of a run."""

import io
import json
import math
import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lmjax.config import TrackConfig
from lmjax.display.console import Console
from lmjax.display.format import printable
from lmjax.run.summary import finish, next_commands, print_summary, result_rows, score_rows, tracked_at


def test_the_final_report_ranks_the_model_among_the_baselines() -> None:
    out = io.StringIO()
    summary = {
        "status": "finished",
        "updates": 600,
        "tokens": 4_915_200,
        "seconds": 231.4,
        "peak_memory_bytes": 1_240_000_000,
        "val_loss": 3.21,
        "val_bits_per_byte": 1.605,
        "baselines": {"unigram_bits_per_byte": 4.5, "kneser_ney_5gram_bits_per_byte": 2.1},
    }
    print_summary(
        Console(out, width=80),
        summary,
        sample="A sample\x1b[2J of text.",
        plots=[Path("runs/x/plots/loss.png")],
        commands=["lmjax plot runs/x"],
    )
    text = out.getvalue()
    assert "finished: 600 updates, 4.92M tokens, 3m51s, 1.24 GB memory" in text
    rows = [line.split()[-2:] for line in text.splitlines() if re.match(r"this model|Kneser|byte", line)]
    assert rows == [["1.605", "3.210"], ["2.100", "4.200"], ["4.500", "9.000"]]  # 2 nats a bit per byte here
    assert text.index("this model") < text.index("Kneser-Ney") < text.index("byte unigram")
    assert "\x1b" not in text
    assert "Plots  runs/x/plots/loss.png" in text
    assert "Next   lmjax plot runs/x" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_a_final_report_without_baselines_or_evaluation() -> None:
    out = io.StringIO()
    print_summary(Console(out, width=80), {"status": "stopped", "updates": 3, "seconds": None, "val_loss": None})
    assert out.getvalue() == "\nstopped: 3 updates\n"


def test_scores_stand_beside_a_simple_baseline_and_what_is_expected() -> None:
    summary = {
        "val_loss": 5.2,
        "val_bits_per_byte": None,
        "val_masked_accuracy": 0.224,
        "val_next_accuracy": 0.825,
        "expect": [["val_next_accuracy", 0.8, 0.9]],
        "baselines": {"most_frequent_token_masked_accuracy": 0.062},
        "best": {"update": 7, "val_loss": 5.1},
    }
    assert score_rows(summary) == [
        ("loss", "5.200", "", ""),
        ("masked accuracy", "0.224", "most frequent token 0.062", ""),
        ("next accuracy", "0.825", "", "0.800 to 0.900"),
    ]
    assert score_rows({"val_loss": 3.0, "val_bits_per_byte": 1.5}) == []  # the table of bits per byte says it all
    out = io.StringIO()
    print_summary(Console(out, width=80), summary)
    assert "best checkpoint: update 7, validation loss 5.100" in out.getvalue()


def test_a_part_that_fails_after_the_last_update_costs_a_line(tmp_path: Path) -> None:
    def fail(*_: Any) -> Any:
        states.append(json.loads((tmp_path / "summary.json").read_text())["status"])
        raise MemoryError("no memory\nleft")

    states: list[str] = []
    objective = SimpleNamespace(
        baselines=fail, finish=lambda _: {"val_exact": math.nan}, sample=fail, example_prompt=lambda: "x"
    )
    settings = SimpleNamespace(
        train=SimpleNamespace(baselines=True),
        evaluate=SimpleNamespace(tasks=()),
        seed=0,
        track=TrackConfig(),
        extensions=(),
    )
    run: Any = SimpleNamespace(config=settings, objective=objective)
    summary: dict[str, Any] = {"status": "finished", "updates": 3, "val_loss": math.inf, "baselines": {}}
    out = io.StringIO()
    finish(run, tmp_path, summary, params=None, console=Console(out, width=200))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    written = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert states == ["finishing", "finishing"]  # a run that ends here is completed by a resume
    assert (written["status"], written["val_loss"], written["val_exact"]) == ("finished", None, None)
    assert written["failed"].keys() == {
        "baselines",
        "writing a sample",
        "finding the best checkpoint",
        "drawing",
        "writing the report",
    }
    text = out.getvalue()
    assert "baselines failed (MemoryError: no memory left); the run is complete without it" in text
    assert [line.split()[1] for line in text.splitlines() if line.startswith("exact ")] == ["nan"]
    assert "inf" in text


def test_a_validation_loss_without_bits_per_byte_is_in_the_results() -> None:
    summary = {"val_loss": 3.5, "val_bits_per_byte": None, "baselines": {"kneser_ney_5gram_loss": 4.25}}
    assert score_rows(summary) == [("loss", "3.500", "kneser ney 5gram 4.250", "")]
    assert result_rows({"val_loss": math.nan, "val_bits_per_byte": math.nan, "baselines": {}}) == [
        ("this model", "nan", "-")
    ]


def test_the_last_lines_say_where_trackers_have_the_curves(tmp_path: Path) -> None:
    assert tracked_at(TrackConfig(), tmp_path) == []
    board, biases = tracked_at(TrackConfig(tensorboard=True, wandb="mine"), tmp_path / "a b")
    assert shlex.split(board) == ["tensorboard", "--logdir", f"{tmp_path}/a b/tensorboard"]
    assert "project mine" in biases


def test_a_prompt_is_one_argument_of_a_shell(tmp_path: Path) -> None:
    for prompt in ("Return the", 'say "no"', "$HOME `ls` \\ !x", "one\ttwo 5% \\n 'x'", "it's"):
        command, *_ = next_commands(tmp_path, prompt=prompt, tasks=(), seed=0)
        shown = printable(command)  # as a terminal has it, from which it is copied
        said = shown.replace(f"lmjax generate {tmp_path} --prompt", "printf %s", 1)
        assert subprocess.run(["sh", "-c", said], stdout=subprocess.PIPE, check=True).stdout.decode() == prompt
    assert command == f'lmjax generate {tmp_path} --prompt "it\'s"'


def test_commands_import_the_files_of_a_run_with_extensions(tmp_path: Path) -> None:
    *commands, again = next_commands(tmp_path, prompt="x", tasks=["copying"], seed=0, extensions=True)
    assert len(commands) == 3
    assert all(command.endswith(" --allow-extensions") for command in commands)
    assert "--allow-extensions" not in again  # train.py imports them without


def test_the_next_run_has_another_seed_and_another_directory(tmp_path: Path) -> None:
    for number, folder in enumerate(("again", "again1", "again2")):
        *_, command = next_commands(tmp_path / "a b", prompt="x", tasks=(), seed=number)
        assert shlex.split(command)[2:] == [
            f"{tmp_path}/a b/config.json", f"seed={2 if number == 1 else 1}", "--run-dir", f"{tmp_path}/{folder}"
        ]  # fmt: skip
        (tmp_path / folder).mkdir()
