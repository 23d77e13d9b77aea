"""Evaluation of in-context learning during training."""

from collections.abc import Callable, Sequence
from math import nan

from lmjax.config import EvaluateConfig, InContextConfig, UserError
from lmjax.config.errors import one_line
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
    trained: set[str] = set()
    if trained_on:
        trained = {*map(catalog.located, trained_on.tasks)} - {*map(catalog.located, trained_on.held_out)}
    share = trained_on.held_out_share if trained_on else 0.0
    shares = [share if catalog.located(name) in trained else 0.0 for name in names]
    return [
        catalog.load(name, held_out_share=share, allow_hub=allow_hub) for name, share in zip(names, shares, strict=True)
    ]


def check(loaded: Sequence[Task], limit: int | None) -> None:
    """Check that the names differ, and that generated texts leave space for the prompts.

    Args:
        loaded: The tasks.
        limit: Context of the model in tokens; None: unlimited.

    Raises:
        UserError: Two tasks have one name, or a task asks for as many tokens as the context has.
    """
    names = [task.config.name for task in loaded]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"evaluate.tasks: two tasks have the name '{twice}', which names their metrics; name a task once, or set "
            "another name in one task.json"
        )
    for task in loaded:
        config = task.config
        if limit is not None and config.kind == "generate" and config.max_tokens >= limit:
            raise UserError(
                f"evaluate.tasks: the task '{config.name}' generates max_tokens = {config.max_tokens} tokens, which "
                f"leaves no space for its prompts in model.context={limit}; increase the context, or leave out the task"
            )


def measure(
    lm: LanguageModel,
    loaded: Sequence[Task],
    config: EvaluateConfig,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:
    """The main metric of each task and number of examples, by name `val_TASK_SHOTS_shot`.

    Where prompts or answers do not fit into the context, `val_TASK_SHOTS_shot_truncated` is the number of documents.
    If the evaluation fails, each task is evaluated alone, and the metrics of those that fail are NaN: a run that
    diverged has no accuracy, and its evaluation does not end it.

    Args:
        lm: The model.
        loaded: The tasks.
        config: The settings.
        report: Receives a line about each task that fails for another reason than numbers that are not finite, and
            about what the scores were not measured on.
    """
    from lmjax.evaluation import scoring  # imported late: most runs do not use it
    from lmjax.inference.generate import NotFinite

    try:
        return _measured(lm, loaded, config, report)
    except UserError as error:
        if len(loaded) > 1:
            scores = (measure(lm, [task], config, report) for task in loaded)
            return {name: value for part in scores for name, value in part.items()}
        if not isinstance(error, scoring.NoScore | NotFinite):
            report(f"{one_line(error)}; the metrics of the task are NaN")
        return {f"val_{task.config.name}_{shots}_shot": nan for task in loaded for shots in config.shots}


def _measured(
    lm: LanguageModel, loaded: Sequence[Task], config: EvaluateConfig, report: Callable[[str], None]
) -> dict[str, float]:
    from lmjax.evaluation import evaluator
    from lmjax.evaluation.report import notes
    from lmjax.evaluation.settings import Settings
    from lmjax.evaluation.task_metrics import PRIMARY

    result = evaluator.evaluate(lm, loaded, Settings(shots=config.shots, limit=config.limit))
    for line in notes(result):
        report(line)
    kinds = {task.config.name: task.config.kind for task in loaded}
    measured = {
        f"val_{name}_{shots}_shot": metrics[PRIMARY[kinds[name]]].value
        for (name, shots), metrics in result.scores().items()
    }
    return measured | {
        f"val_{row['task']}_{row['shots']}_shot_truncated": float(max(row["prompts"], row["answers"]))
        for row in result.truncations()
    }
