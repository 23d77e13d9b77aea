"""The end of a run: its results, the baselines, and commands to try next."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lmjax.config import TrackConfig
from lmjax.config.errors import one_line
from lmjax.display.console import Console
from lmjax.display.format import digits, duration, known, number, quantity
from lmjax.objectives.reward import RewardModel
from lmjax.pytrees import count, digest
from lmjax.rl import reward_report
from lmjax.run import html_report, saved
from lmjax.run.build import Run
from lmjax.system import machine
from lmjax.system.files import write_text
from lmjax.system.json_files import write_json
from lmjax.training.state import State

T = TypeVar("T")
FINISHING = "finishing"  # status of a run that has applied its last update, but has no complete summary


def summarise(run: Run, state: State, *, status: str, seconds: float, measured: dict[str, float]) -> dict[str, Any]:
    """Return the fields of summary.json.

    `measured` holds the scores (`val_...`) of the last evaluation.
    """
    update = int(state.update)
    return {
        "status": status,
        "updates": update,
        "tokens": run.tokens_after(update),
        "seconds": seconds,
        "val_loss": measured.get("val_loss"),
        "val_bits_per_byte": measured.get("val_bits_per_byte"),
        **measured,
        "expect": run.config.train.expect,
        "baselines": {},
        "digest": digest(state),
        "parameters": count(state.params),
        "flops_per_token": run.flops_per_token,
        "peak_memory_bytes": machine.peak_memory(),
        **run.samples.lost(),
    }


def finish(run: Run, run_dir: Path, summary: dict[str, Any], *, params: Any, console: Console) -> None:
    """Measure, sample and draw; write summary.json and print the results.

    Only the main process calls this. A part that fails costs a line and its result, not the run: summary.json is
    written before the first part, with the status `finishing`, so that a resume completes a run that ended here.

    Args:
        run: the run.
        run_dir: directory of the run.
        summary: the fields of summary.json.
        params: the parameters to use, on one device.
        console: prints the results.
    """
    failed: dict[str, str] = {}

    def attempt(name: str, part: Callable[[], T], otherwise: T) -> T:
        try:
            with console.phase(name):
                return part()
        except (Exception, SystemExit) as error:  # of the objective, of user code, of matplotlib, or no memory
            failed[name] = f"{type(error).__name__}: {one_line(error)}"
            console.event(f"{name} failed ({failed[name]}); the run is complete without it")
            return otherwise

    write_json(run_dir / "summary.json", summary | {"status": FINISHING})
    if run.config.train.baselines:
        summary["baselines"] = attempt("baselines", run.objective.baselines, {})
    summary |= attempt("measuring", lambda: run.objective.finish(params), {})
    sample = attempt("writing a sample", lambda: run.objective.sample(params), "")
    if best := attempt("finding the best checkpoint", lambda: saved.best(run_dir), None):
        summary["best"] = {"update": best[0], "val_loss": best[1]}
    pictures = attempt("drawing", lambda: _draw(run_dir), [])
    if isinstance(run.objective, RewardModel):
        pictures += attempt("reporting", lambda: _report(run, run_dir, params, console), [])
    write_json(run_dir / "summary.json", summary)
    pictures += attempt("writing the report", lambda: [_page(run_dir, sample)], [])
    if failed:
        write_json(run_dir / "summary.json", summary | {"failed": failed})
    config = run.config
    commands = next_commands(
        run_dir,
        prompt=run.objective.example_prompt(),
        tasks=config.evaluate.tasks,
        seed=config.seed,
        extensions=bool(config.extensions),
    )
    tracked = tracked_at(config.track, run_dir)
    print_summary(console, summary, sample=sample, plots=pictures, tracked=tracked, commands=commands)


def _page(run_dir: Path, sample: str) -> Path:
    """Write the sample and the HTML report of the run."""
    if sample:
        write_text(run_dir / html_report.SAMPLE, sample + "\n")
    return html_report.write([run_dir])


def _draw(run_dir: Path) -> list[Path]:
    from lmjax.run import curves  # imports matplotlib, which is slow

    return curves.draw([run_dir], run_dir / "plots")


def _report(run: Run, run_dir: Path, params: Any, console: Console) -> list[Path]:
    """Write the report of a reward model with its picture, and say its verdict."""
    from lmjax.display import figures  # these import matplotlib, which is slow
    from lmjax.rl import reward_pictures

    assert isinstance(run.objective, RewardModel)
    found = reward_report.measure(run.objective, params)
    console.event(f"health: {reward_report.verdict(found)}")
    picture = figures.save(reward_pictures.figure(found), run_dir / reward_report.PICTURE)
    return [reward_report.write(run_dir, found), picture]


def print_summary(
    console: Console,
    summary: Mapping[str, Any],
    *,
    sample: str = "",
    plots: Sequence[Any] = (),
    tracked: Sequence[str] = (),
    commands: Sequence[str] = (),
) -> None:
    """Print the results of a run (the fields of summary.json) and commands to try next."""
    console.close()
    parts = [
        f"{summary.get('status', 'finished')}: {summary.get('updates', 0)} updates",
        known(summary.get("tokens"), lambda value: f"{quantity(value)} tokens"),
        known(summary.get("seconds"), duration),
        known(summary.get("peak_memory_bytes"), lambda value: f"{quantity(value, 'B')} memory"),
    ]
    console.event("\n" + ", ".join(part for part in parts if part))
    if rows := result_rows(summary):
        console.table("Validation", rows, header=("", "bits per byte", "loss (nats per token)"))
    if rows := score_rows(summary):
        console.table("Results", rows, header=("", "this model", "simple baseline", "expected"))
    if best := summary.get("best"):
        console.event(f"\nbest checkpoint: update {best['update']}, validation loss {digits(best['val_loss'])}")
    if sample:
        console.text("Sample", sample)
    for title, lines in (("Plots", plots), ("Track", tracked), ("Next", commands)):
        for i, line in enumerate(lines):
            console.event(f"\n{title:<7}{line}" if i == 0 else f"{'':<7}{line}")


def result_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (name, bits per byte, nats per token) of the model and the baselines, best first."""
    loss, bits = summary.get("val_loss"), summary.get("val_bits_per_byte")
    nats = loss / bits if number(loss) and number(bits) and bits else None  # nats per token of one bit per byte
    baselines = summary.get("baselines") or {}
    named = [
        ("this model", bits),
        ("Kneser-Ney 5-gram", baselines.get("kneser_ney_5gram_bits_per_byte")),
        ("byte unigram", baselines.get("unigram_bits_per_byte")),
    ]
    ranked = [(name, value) for name, value in named if isinstance(value, int | float)]
    ranked.sort(key=lambda row: (not number(row[1]), row[1]))  # a value that is not finite comes last
    return [(name, digits(value), digits(value * nats if nats else None)) for name, value in ranked]


def score_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return (metric, value, value of a simple baseline, expected range) of each score.

    The result is empty if the run has no other score than loss and bits per byte, and has both.
    """
    baselines = summary.get("baselines") or {}
    expected = {name: (low, high) for name, low, high in summary.get("expect", ())}
    rows = []
    for key, value in summary.items():
        if not key.startswith("val_") or not isinstance(value, int | float):
            continue
        name, (low, high) = key.removeprefix("val_"), expected.get(key, (None, None))
        simple = [(k.removesuffix(name).replace("_", " ").strip(), v) for k, v in baselines.items() if k.endswith(name)]
        baseline = ", ".join(f"{who} {digits(v)}" for who, v in simple if "byte" not in name)
        band = f"{digits(low)} to {digits(high)}" if low is not None else ""
        rows.append((name.replace("_", " "), digits(value), baseline, band))
    others = any(key.startswith("val_") and key not in ("val_loss", "val_bits_per_byte") for key in summary)
    return rows if expected or others or summary.get("val_bits_per_byte") is None else []


def tracked_at(config: TrackConfig, run_dir: Path) -> list[str]:
    """Return where the curves are that a run sent to trackers, a line each."""
    places = []
    if config.tensorboard:
        places.append(f"tensorboard --logdir {shlex.quote(str(run_dir / 'tensorboard'))}")
    if config.wandb:
        places.append(f"Weights & Biases, project {config.wandb}; local files in {run_dir / 'wandb'}")
    return places


def next_commands(
    run_dir: Path, *, prompt: str, tasks: Sequence[str], seed: int, extensions: bool = False
) -> list[str]:
    """Return commands to try on a finished run; the last one trains with another seed.

    Args:
        run_dir: The run.
        prompt: Words of its own data.
        tasks: Tasks that it evaluates.
        seed: Its seed.
        extensions: Whether it lists Python files, which commands import only with a flag.
    """
    trusted = " --allow-extensions" if extensions else ""
    run, config = shlex.quote(str(run_dir)), shlex.quote(str(run_dir / "config.json"))
    names = (run_dir.with_name(f"again{number or ''}") for number in range(1000))
    again = next((path for path in names if not path.exists()), run_dir.with_name("again"))
    return [
        f"lmjax generate {run} --prompt {_quoted(prompt)}{trusted}",
        *([f"lmjax evaluate {run} --tasks {','.join(tasks)} --shots 0,1,8{trusted}"] if tasks else []),
        f"lmjax audit {run}{trusted}",
        f"python train.py {config} seed={2 if seed == 1 else 1} --run-dir {shlex.quote(str(again))}",
    ]


def _quoted(text: str) -> str:
    """Return a text as an argument of a shell, in double quotes if these suffice."""
    if "\t" in text:  # a terminal shows a tab as spaces, which are copied
        escaped = shlex.quote(text.replace("\\", r"\\").replace("\t", r"\t"))
        return f'"$(printf %b {escaped})"'
    return f'"{text}"' if not set(text) & set('"$`\\!\t') else shlex.quote(text)
