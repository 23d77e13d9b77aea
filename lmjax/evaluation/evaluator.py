"""Evaluation of a model on tasks: builds prompts, requests responses and scores them.

Questions are built and answered in chunks, so that the requests of a chunk only are in memory. Identical requests are
computed once, in other chunks too: the cache has the response.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from lmjax.config import UserError
from lmjax.evaluation import questions, scoring, text_metrics
from lmjax.evaluation.cache import Cache, key_of
from lmjax.evaluation.questions import Question
from lmjax.evaluation.results import Response, Result, Sample
from lmjax.evaluation.scoring import NoScore, Request
from lmjax.evaluation.settings import Settings
from lmjax.inference.generate import generate
from lmjax.inference.language_model import LanguageModel, with_first
from lmjax.inference.sampling import Sampling
from lmjax.tasks import catalog
from lmjax.tasks.spec import Task

ROWS = 32  # prompts of a generation batch
CHUNK = 1 << 21  # tokens of the requests in memory

Progress = Callable[[int, int], None]


def evaluate(
    lm: LanguageModel,
    names: Iterable[str | Task],
    settings: Settings | None = None,
    *,
    cache: Cache | None = None,
    share: bool = True,
    progress: Progress = lambda done, total: None,
) -> Result:
    """Evaluate a model on tasks.

    The outcome for a document depends only on the model, the task, the number of shots and the seed (up to rounding).

    Args:
        lm: The model.
        names: Tasks, or names of tasks in the catalog.
        settings: The settings; default: `Settings()`.
        cache: Cache of responses, read first; new responses are added to it. `cache.of_model(lm)` is the cache in the
            user's cache folder.
        share: See `scoring.score`.
        progress: Called with the number of completed requests and the total, which is estimated from the questions of
            the chunks so far.

    Raises:
        UserError: A task does not exist, is named twice, has fewer examples than requested, or has no space for its
            prompts; or a score is not a number.
    """
    settings, cache = settings or Settings(), cache or Cache(None)
    loaded = [name if isinstance(name, Task) else catalog.load(name) for name in names]
    if len({task.config.name for task in loaded}) < len(loaded):
        raise UserError("a task is named twice; name each task once")
    _check_effects(loaded, settings)
    lm = with_first(lm, settings.first_token)
    loaded = [questions.prepared(lm, task, settings) for task in loaded]
    samples: list[Sample] = []
    unknown: dict[str, set[str]] = {}
    counter = _Counter(progress, questions=sum(questions.count(task, settings) for task in loaded))
    asked = (question for task in loaded for question in questions.ask(lm, task, settings))
    for chunk in _chunks(asked):
        responses = answer(lm, chunk, cache=cache, share=share, counter=counter)
        samples += [question.sample(by_name) for question, by_name in zip(chunk, responses, strict=True)]
        for question in chunk:
            if question.has(lm.tokenizer.unknown):
                unknown.setdefault(question.task.config.name, set()).add(question.document.id)
    configs, sizes = {t.config.name: t.config for t in loaded}, {t.config.name: len(t.documents) for t in loaded}
    values = {**asdict(settings), "shots": list(settings.shots)}
    facts = _facts(lm, loaded, settings) | {"unknown_tokens": {name: len(ids) for name, ids in unknown.items()}}
    return Result(lm.name, tuple(samples), configs, values, sizes, facts)


def _check_effects(tasks: Sequence[Task], settings: Settings) -> None:
    """Raise UserError if a setting is for a kind of task that is not there."""
    kinds = {task.config.kind for task in tasks}
    if (settings.mutual_info or settings.calibrated) and "choose" not in kinds:
        raise UserError("mutual_info and calibrated score choices, but no task is of kind 'choose'; leave them out")
    for name, kind in (("window", "perplexity"), ("max_tokens", "generate")):
        value = getattr(settings, name)
        if value and kind not in kinds:
            raise UserError(f"{name}={value} is for tasks of kind '{kind}', and there is none; leave it out")


def _facts(lm: LanguageModel, tasks: Sequence[Task], settings: Settings) -> dict[str, Any]:
    """What a reader must know about the scores, see `Result.facts`."""
    unreachable = {task.config.name: questions.unreachable(lm, task, settings) for task in tasks}
    missing = {t.config.name: text_metrics.not_computed(t.config.kind, t.config.metrics) for t in tasks}
    return {
        "first_token": lm.first_token(),
        "unreachable": {name: counts for name, counts in unreachable.items() if counts},
        "not_computed": {name: metrics for name, metrics in missing.items() if metrics},
        "dropped": {task.config.name: task.dropped for task in tasks if task.dropped},
        "first_rows": {task.config.name: task.first_rows for task in tasks if task.first_rows},
    }


def _chunks(asked: Iterable[Question]) -> Iterator[list[Question]]:
    """Group questions in their order; a chunk ends when its requests have `CHUNK` tokens."""
    chunk: list[Question] = []
    size = 0
    for question in asked:
        chunk.append(question)
        size += question.size
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class _Counter:
    """Counts completed requests, and estimates their total."""

    def __init__(self, progress: Progress, *, questions: int) -> None:
        self._progress, self._questions = progress, questions
        self._done = self._total = self._seen = 0

    def begin(self, questions: int, requests: int) -> None:
        """Begin a chunk of questions, with the number of requests that are to be computed."""
        self._seen += questions
        self._total += requests
        self.add(0)

    def add(self, count: int) -> None:
        """Count completed requests."""
        self._done += count
        self._progress(self._done, round(self._total * self._questions / self._seen))


# ---- Answers ----------------------------------------------------------------------------------------------------


def answer(
    lm: LanguageModel, asked: Sequence[Question], *, cache: Cache, share: bool, counter: _Counter
) -> list[dict[str, Response]]:
    """The responses to each question, by request name; identical requests are computed once."""
    owners = {_key(request): (request, q) for q in asked for list_ in q.asked.values() for request in list_}
    texts = {_text_key(q): q for q in asked if q.task.config.kind == "generate"}
    missing = [key for key in owners if cache.get(key) is None]
    unread = [key for key in texts if cache.get(key) is None]
    counter.begin(len(asked), len(missing) + len(unread))

    def keep(responses: dict[str, Response]) -> None:
        cache.add(responses)
        counter.add(len(responses))

    def take(scores: dict[int, scoring.Found]) -> None:
        keep({missing[i]: (scored.logprob, scored.greedy) for i, scored in scores.items()})

    if missing:
        try:
            scoring.score(lm, [owners[key][0] for key in missing], share=share, take=take)
        except NoScore as error:
            raise error.at(owners[missing[error.index]][1].where) from None
    for batch in _batches([texts[key] for key in unread]):
        keep(dict(zip(map(_text_key, batch), _continued(lm, batch), strict=True)))
    return [_found(question, cache) for question in asked]


def _found(question: Question, cache: Cache) -> dict[str, Response]:
    if question.task.config.kind == "generate":
        return {"text": _got(cache, _text_key(question))}
    responses: dict[str, Response] = {}
    for name, requests in question.asked.items():
        parts: Any = [_got(cache, _key(request)) for request in requests]
        responses[name] = (sum(part[0] for part in parts), all(part[1] for part in parts))
    return responses


def _got(cache: Cache, key: str) -> Response:
    response = cache.get(key)
    assert response is not None
    return response


def _key(request: Request) -> str:
    return key_of(request.context, request.continuation)


def _text_key(question: Question) -> str:
    """The key of a generated text: the ids that the model reads, and what ends the text."""
    return key_of(list(question.ids), question.task.config.stop, question.task.config.max_tokens)


def _batches(asked: list[Question]) -> Iterator[list[Question]]:
    """Group questions with the same stops and similar length into batches."""
    kinds: dict[Any, list[Question]] = {}
    for question in asked:
        kinds.setdefault((question.task.config.stop, question.task.config.max_tokens), []).append(question)
    for alike in kinds.values():
        alike.sort(key=lambda question: len(question.prompt), reverse=True)
        yield from (alike[start : start + ROWS] for start in range(0, len(alike), ROWS))


def _continued(lm: LanguageModel, asked: list[Question]) -> list[str]:
    """Continue the prompts by greedy decoding."""
    config = asked[0].task.config
    sampling = Sampling(max_tokens=config.max_tokens, temperature=0, stop=config.stop)
    return generate(lm, [question.ids for question in asked], sampling=sampling)
