"""Evaluation of in-context learning during training."""

from collections.abc import Sequence
from math import nan

from lmjax.config import EvaluateConfig, InContextConfig
from lmjax.inference.language_model import LanguageModel
from lmjax.tasks import catalog
from lmjax.tasks.spec import Task


def load(names: Sequence[str], trained_on: InContextConfig | None, *, allow_hub: bool = False) -> list[Task]:
    """Load tasks by name; tasks that `trained_on` renders contain only their held-out items.

    Args:
        names: The names.
        trained_on: The tasks that the model was trained on.
        allow_hub: Follow a name of the hub inside a task.json.

    Raises:
        UserError: A task does not exist.
    """
    trained = set(trained_on.tasks) - set(trained_on.held_out) if trained_on else set()
    share = trained_on.held_out_share if trained_on else 0.0
    shares = [share if name in trained else 0.0 for name in names]
    return [
        catalog.load(name, held_out_share=share, allow_hub=allow_hub) for name, share in zip(names, shares, strict=True)
    ]


def measure(lm: LanguageModel, loaded: Sequence[Task], config: EvaluateConfig) -> dict[str, float]:
    """The main metric of each task and number of examples, by name `val_TASK_SHOTS_shot`.

    All are NaN if a log-probability is not a number: a run that diverged has no accuracy.
    """
    from lmjax.evaluation import evaluator, scoring  # imported late: most runs do not use it
    from lmjax.evaluation.settings import Settings
    from lmjax.evaluation.task_metrics import PRIMARY

    settings = Settings(shots=config.shots, limit=config.limit)
    try:
        scores = evaluator.evaluate(lm, loaded, settings).scores()
    except scoring.NoScore:
        return {f"val_{task.config.name}_{shots}_shot": nan for task in loaded for shots in config.shots}
    kinds = {task.config.name: task.config.kind for task in loaded}
    return {
        f"val_{name}_{shots}_shot": metrics[PRIMARY[kinds[name]]].value for (name, shots), metrics in scores.items()
    }
