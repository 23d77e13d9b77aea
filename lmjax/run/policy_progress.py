"""What the answers of a policy get before its first update and after its last one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmjax.config import UserError
from lmjax.config.policies import PolicyConfig
from lmjax.config.rewards import FunctionConfig, LearnedRewardConfig
from lmjax.parallel import processes
from lmjax.run.build import Run
from lmjax.run.policy_evaluation import REPORT, series_of
from lmjax.system.files import write_text
from lmjax.training import loop, metrics
from lmjax.training.inputs import LoopInputs, Position

PICTURE = "rl_report.png"
_DEVIATIONS = 1.96  # of a normal distribution, for an interval of 95 %
_SHOWN = {
    "val_reward": "sampled",
    "val_reward_best": "best of a group",
    "val_greedy_reward": "greedy",
    "val_true_reward": "true reward of sampled answers",
}


def begin(run: Run, position: Position, inputs: LoopInputs) -> None:
    """Evaluate a policy before its first update, and say what its answers get.

    Nothing can be reinforced if no sampled answer gets a reward. The greedy answers do not show this: a policy may be
    right greedily and nearly never by sampling.

    Raises:
        UserError: The mean reward is less than `objective.least_reward`.
    """
    config = run.config.objective
    if position.update or not isinstance(config, PolicyConfig):
        return
    if processes.is_main() and metrics.read(inputs.run_dir / "metrics.jsonl"):
        inputs.recorder.rewind(-1)  # a process that was killed here has recorded it
    values = loop.evaluate(inputs, position, whole=False)
    rewards = ", ".join(f"{label} {_interval(values, name)}" for name, label in _SHOWN.items() if name in values)
    if rewards:
        inputs.console.event(f"rewards of held-out prompts before the first update: {rewards}")
    reward = values.get("val_reward", 1.0)
    is_share = not isinstance(config.reward, FunctionConfig | LearnedRewardConfig)
    if is_share and reward < config.least_reward:
        raise UserError(
            f"{reward:.3g} of the sampled answers get a reward, less than objective.least_reward="
            f"{config.least_reward:g}: there is too little to reinforce; fine-tune the model of init_from longer, or "
            f"continue with --resume {inputs.run_dir} objective.least_reward=0 --allow-change objective.least_reward"
        )


def conclude(run: Run, values: Mapping[str, float], inputs: LoopInputs) -> None:
    """Say what the answers of a policy got before the first update and get now.

    The report gets the same, with a picture. `values`: the last evaluation.
    """
    if not run.objective.episodic or not values or not processes.is_main():
        return
    records = metrics.read(inputs.run_dir / "metrics.jsonl")
    before = next((record for record in records if record["update"] == 0 and "val_reward" in record), {})
    rows = [
        (label, _interval(before, name), _interval(values, name)) for name, label in _SHOWN.items() if name in values
    ]
    inputs.console.table("Rewards of held-out prompts", rows, ("", "before the first update", "after the last one"))
    try:
        _complete(inputs.run_dir, rows, records)
    except Exception as error:  # a picture that fails must not stop the run
        inputs.console.event(f"the report has no picture: {error}")


def _complete(run_dir: Path, rows: list[tuple[str, str, str]], records: list[dict[str, Any]]) -> None:
    """Add what changed, and the picture, to the report."""
    from lmjax.display.figures import save  # imports matplotlib, which is slow
    from lmjax.rl.policy_pictures import figure

    held_out = [record for record in records if record.get("val_reward") is not None]
    evaluations = {name: [record[key] for record in held_out] for name, key in _HELD_OUT.items()}
    save(figure(series_of(records), evaluations), run_dir / PICTURE)
    lines = ["## Before and after", "", "| held-out prompts | before the first update | after the last one |"]
    lines += ["|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows), ""]
    lines += [
        "The best of a group before the first update is a yardstick: choosing it needs no training.",
        "",
    ]
    lines += [f"![Reward, KL divergence and entropy of the run]({PICTURE})"]
    text = (run_dir / REPORT).read_text(encoding="utf-8")
    write_text(run_dir / REPORT, f"{text.rstrip()}\n\n" + "\n".join(lines) + "\n")


_HELD_OUT = {"update": "update", "reward": "val_reward"}


def _interval(values: Mapping[str, Any], name: str) -> str:
    """Return a mean with its interval of 95 %, if its standard error is known."""
    mean, error = values.get(name), values.get(f"{name}_error")
    if mean is None or error is None:
        return "unknown" if mean is None else f"{mean:.3f}"
    return f"{mean:.3f} [{mean - _DEVIATIONS * error:.3f}, {mean + _DEVIATIONS * error:.3f}]"
