"""Draw docs/_static/resume.png: a run that is killed, resumed and hit by a spike, over an undisturbed run.

    python docs/make_resume_picture.py

Both are real runs of `python train.py` with the same configuration and seed. The faults come from `LMJAX_FAULTS`
(`lmjax/system/faults.py`). The script fails unless both runs end with the same digest of parameters, optimizer state
and guard. It takes about a minute on two CPU cores.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
PICTURE = Path(__file__).parent / "_static" / "resume.png"
CHANGES = (
    "data.tokenizer.kind=bytes model.layers=2 model.width=64 model.heads=2 model.mlp_width=128 model.context=64 "
    "batch.tokens=((0,2048),) batch.microbatch=32 optimizer.name=adamw schedule.peak=5e-3 train.updates=180 "
    "train.evaluate_batches=4 train.final_batches=20 train.baselines=false train.log_every=1 checkpoint.every=20"
)
KILL, SPIKE = 75, 138  # updates at which the two faults occur
GREY, BLUE, RED, GREEN = "#b8c0cc", "#1f4e9c", "#c0392b", "#1e8449"


class Step(NamedTuple):
    """One batch that the run tried: the update it belongs to, its loss, and whether the update was applied."""

    update: int
    loss: float
    applied: bool


def main() -> None:
    """Run both runs, compare their digests and draw."""
    with tempfile.TemporaryDirectory() as folder:
        clean, disturbed = Path(folder) / "clean", Path(folder) / "disturbed"
        train("quickstart", *CHANGES.split(), "--run-dir", clean)
        train(
            "quickstart", *CHANGES.split(), "--run-dir", disturbed, fault=f"update=kill@{KILL}", status=-signal.SIGKILL
        )
        before_kill = metrics(disturbed)
        train("--resume", disturbed, fault=f"learning_rate=times:1e6@{SPIKE}")
        digests = [json.loads((run / "summary.json").read_text())["digest"] for run in (clean, disturbed)]
        assert digests[0] == digests[1], f"the runs end with different digests: {digests}"
        draw(metrics(clean), history(disturbed, before_kill), digests[0])


def train(*words: Any, fault: str = "", status: int = 0) -> None:
    """Run `python train.py WORDS` under a fault; stop unless it ends with `status`."""
    command = [sys.executable, "train.py", *map(str, words)]
    process = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"LMJAX_FAULTS": fault}, capture_output=True, text=True
    )
    if process.returncode != status:
        sys.exit(f"{' '.join(command)} ended with status {process.returncode}, not {status}:\n{process.stderr}")


def metrics(run: Path) -> dict[int, float]:
    """The training loss of each update in metrics.jsonl."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {record["update"]: record["loss"] for record in records if "loss" in record}


def history(run: Path, before_kill: dict[int, float]) -> list[list[Step]]:
    """The passes of a run, split where it was resumed or went back, from its journal.

    before_kill: the losses up to the kill. The last of them are not in the journal, which the kill cut short.
    """
    passes: list[list[Step]] = [[]]
    for record in map(json.loads, (run / "journal.jsonl").read_text().splitlines()):
        if record["event"] == "resume":
            passes = [[Step(update, loss, True) for update, loss in before_kill.items()], []]
        applied = record.get("applied", {"first": 0, "losses": []})
        for update, loss in enumerate(applied["losses"], applied["first"]):
            passes[-1].append(Step(update, float.fromhex(loss), True))
        if record["event"] == "suspect":
            passes[-1].append(Step(record["update"] + 1, float.fromhex(record["loss"]), False))
        if record["event"] == "rollback":
            passes.append([])
    return passes


def draw(clean: dict[int, float], passes: list[list[Step]], digest: str) -> None:
    """Draw the losses of both runs, and next to them the progress over the batches that were tried."""
    plt.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    figure, (top, bottom) = plt.subplots(1, 2, figsize=(10, 3.7), width_ratios=(3, 2), layout="constrained")
    figure.suptitle(f"Same configuration, same seed, same bits at the end: digest {digest[:16]} in both runs")
    losses = list(clean.values())
    ceiling = max(losses) + 0.12 * (max(losses) - min(losses))
    top.plot(list(clean), losses, color=GREY, linewidth=5, label="undisturbed run")
    bottom.plot([0, len(clean)], [0, len(clean)], color=GREY, linewidth=5)
    tried = 0
    for number, steps in enumerate(passes):
        label = "killed, resumed and spiked run" if number == 0 else None
        good = [step for step in steps if step.applied and step.loss < ceiling]
        bad = [step for step in steps if not step.applied]
        top.plot([s.update for s in good], [s.loss for s in good], color=BLUE, linewidth=1.2, label=label)
        top.plot([s.update for s in bad], [min(s.loss, ceiling) for s in bad], "x", color=RED)
        bottom.plot(range(tried, tried + len(steps)), [s.update for s in steps], color=BLUE, linewidth=1.2)
        tried += len(steps)
        if number + 1 < len(passes):
            bottom.plot([tried, tried], [steps[-1].update, passes[number + 1][0].update], ":", color=BLUE, linewidth=1)
            bottom.plot(tried - 1, steps[-1].update, "x", color=RED)
            bottom.plot(tried, passes[number + 1][0].update, ">", color=GREEN, markersize=5)
    kill, resumed = passes[0][-1], passes[1][0]
    spike, replayed = passes[1][-1], passes[2][0]
    top.plot(kill.update, kill.loss, "x", color=RED)
    top.plot([s.update for s in (resumed, replayed)], [s.loss for s in (resumed, replayed)], ">", color=GREEN)
    low, high = min(losses), max(losses)
    floor = low - 0.3 * (high - low)
    note(
        top,
        f"kill -9, last record: update {kill.update}",
        (kill.update, kill.loss),
        (14, kill.loss + 0.25 * (high - low)),
        RED,
    )
    note(top, f"--resume after update {resumed.update - 1}", (resumed.update, resumed.loss), (2, floor), GREEN)
    note(
        top, f"learning rate x 1e6 in update {SPIKE}", (spike.update, ceiling), (72, ceiling - 0.2 * (high - low)), RED
    )
    note(top, f"rolled back to update {replayed.update - 1}", (replayed.update, replayed.loss), (74, floor), GREEN)
    top.set(xlabel="update", ylabel="training loss (nats per byte)", ylim=(floor - 0.1, ceiling + 0.1))
    top.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.58))
    bottom.set(xlabel="batches tried", ylabel="update", ylim=(-5, len(clean) + 5))
    bottom.text(
        0.98, 0.04, "red: stopped or spiked\ngreen: continued from here", transform=bottom.transAxes, ha="right"
    )
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)
    print(f"{PICTURE.relative_to(ROOT)}: digest {digest}, {PICTURE.stat().st_size / 1e3:.0f} kB")


def note(axes: Any, text: str, at: tuple[float, float], where: tuple[float, float], color: str) -> None:
    """Write a text with a line to the point that it describes."""
    axes.annotate(text, at, where, color=color, arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.7})


if __name__ == "__main__":
    main()
