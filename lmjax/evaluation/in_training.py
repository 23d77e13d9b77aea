"""Evaluation of in-context learning during training."""

from collections.abc import Sequence

from lmjax.config import EvaluateConfig, InContextConfig
from lmjax.inference.language_model import LanguageModel
from lmjax.tasks import catalog
from lmjax.tasks.spec import Task


def load(names: Sequence[str], trained_on: InContextConfig | None) -> list[Task]:
    """Load tasks by name; tasks that `trained_on` renders contain only their held-out items.

    Raises:
        UserError: A task does not exist.
    """
    trained = set(trained_on.tasks) - set(trained_on.held_out) if trained_on else set()
    share = trained_on.held_out_share if trained_on else 0.0
    return [catalog.load(name, held_out_share=share if name in trained else 0.0) for name in names]


def measure(lm: LanguageModel, loaded: Sequence[Task], config: EvaluateConfig) -> dict[str, float]:
    """The main metric of each task and number of examples, by name `val_TASK_SHOTS_shot`."""
    from lmjax.evaluation import evaluator  # imported late: most runs do not use it
    from lmjax.evaluation.task_metrics import PRIMARY

    settings = evaluator.Settings(shots=config.shots, limit=config.limit)
    scores = evaluator.evaluate(lm, loaded, settings).scores()
    kinds = {task.config.name: task.config.kind for task in loaded}
    return {
        f"val_{name}_{shots}_shot": metrics[PRIMARY[kinds[name]]].value for (name, shots), metrics in scores.items()
    }
