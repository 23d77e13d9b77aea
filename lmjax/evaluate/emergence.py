"""In-context learning while a model is trained: what is measured at each evaluation."""

from collections.abc import Sequence

from lmjax.config import EvaluateConfig, InContextConfig
from lmjax.generate import LanguageModel
from lmjax.prompting import task as tasks
from lmjax.prompting.task import Task


def load(names: Sequence[str], trained_on: InContextConfig | None) -> list[Task]:
    """The tasks of these names; of those that `trained_on` renders only the items that it holds out.

    UserError: no such task.
    """
    shown = set(trained_on.tasks) - set(trained_on.held_out) if trained_on else set()
    share = trained_on.held_out_share if trained_on else 0.0
    return [tasks.load(name, held_out_share=share if name in shown else 0.0) for name in names]


def measure(lm: LanguageModel, loaded: Sequence[Task], config: EvaluateConfig) -> dict[str, float]:
    """The main metric of each task and number of examples, `val_TASK_SHOTS_shot`."""
    from lmjax.evaluate import evaluator  # most runs never come here
    from lmjax.evaluate.metrics import PRIMARY

    settings = evaluator.Settings(shots=config.shots, limit=config.limit)
    scores = evaluator.evaluate(lm, loaded, settings).scores()
    kinds = {one.config.name: one.config.kind for one in loaded}
    return {f"val_{name}_{shots}_shot": found[PRIMARY[kinds[name]]].value for (name, shots), found in scores.items()}
