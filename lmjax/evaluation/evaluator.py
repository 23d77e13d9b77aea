"""Evaluation of a model on tasks: builds prompts, requests responses and scores them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lmjax.config import UserError
from lmjax.evaluation import scoring, task_metrics
from lmjax.evaluation.cache import Cache, key_of
from lmjax.evaluation.results import Response, Result, Sample
from lmjax.evaluation.scoring import Request
from lmjax.inference import incremental
from lmjax.inference.generate import generate
from lmjax.inference.language_model import LanguageModel
from lmjax.inference.sampling import Sampling
from lmjax.tasks import catalog, template
from lmjax.tasks.draws import Choices
from lmjax.tasks.shots import render_prompt
from lmjax.tasks.spec import Document, Task

CONTENT_FREE = ("N/A", "[MASK]", "")  # Zhao et al. 2021, section 5
ROWS = 32  # prompts of a generation batch

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """Settings of an evaluation, common to all tasks."""

    #: Numbers of examples in the prompt.
    shots: tuple[int, ...] = (0,)
    #: Number of random draws of examples, for the spread.
    seeds: int = 1
    #: Maximum number of documents of each task, a uniform sample; a smaller sample is a subset of a larger (0: all).
    limit: int = 0
    #: Examples cycle through the labels.
    balanced: bool = False
    #: The prompt starts with the task's description.
    described: bool = False
    #: Compute acc_mutual_info, with additional requests.
    mutual_info: bool = False
    #: Compute acc_calibrated, with additional requests.
    calibrated: bool = False

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 0 or len(set(self.shots)) < len(self.shots):
            raise UserError(f"shots={list(self.shots)}: numbers of examples must be distinct and at least 0")
        if self.seeds < 1 or self.limit < 0:
            raise UserError(f"seeds={self.seeds} must be at least 1, and limit={self.limit} at least 0")


@dataclass(frozen=True)
class Question:
    """A document with its examples, and the requests to the model."""

    #: The task of the document.
    task: Task
    #: The document.
    document: Document
    #: Number of examples in the prompt.
    shots: int
    #: Seed of the draw of examples.
    seed: int
    #: The complete prompt, including examples.
    prompt: str
    #: Log-probability requests by name; empty for a task of kind `generate`.
    asked: dict[str, list[Request]]

    def sample(self, responses: Mapping[str, Response]) -> Sample:
        """Score the responses to the requests, by their names."""
        document, config, answers = self.document, self.task.config, _row(responses, "answer")
        scores = [float(response[0]) for response in answers]
        match config.kind:
            case "choose":
                named: Any = {
                    "unconditional": _scores(responses, "alone"),
                    "content_free": [
                        s for i in range(len(CONTENT_FREE)) if (s := _scores(responses, f"content free {i}"))
                    ],
                }
                measured = task_metrics.choose(scores, document.choices, gold=document.gold or 0, **named)
            case "pairs":
                measured = task_metrics.pairs(scores, gold=document.gold or 0)
            case "match":
                measured = task_metrics.match([(float(logprob), bool(greedy)) for logprob, greedy in answers])
            case "generate":
                answers = [responses["text"]]
                folding = ("filters", "ignore_case", "ignore_punctuation")
                named = {name: getattr(config, name) for name in folding}
                measured = task_metrics.generate(str(responses["text"]), document.answers, **named)
            case "perplexity":
                answers = [responses["text"]]
                tokens = sum(len(request.continuation) for request in self.asked["text"])
                measured = task_metrics.perplexity(float(answers[0][0]), document.prompt, tokens=tokens)
        target = (document.answers or ("",))[0]
        return Sample(
            config.name, document.id, self.shots, self.seed, self.prompt, target, tuple(answers), dict(measured)
        )


def _row(responses: Mapping[str, Response], name: str) -> list[Response]:
    """The responses to the options 0, 1, ... of a request name."""
    return [responses[f"{name} {i}"] for i in range(len(responses)) if f"{name} {i}" in responses]


def _scores(responses: Mapping[str, Response], name: str) -> list[float] | None:
    return [float(response[0]) for response in _row(responses, f"{name} of")] or None


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
        progress: Called with the number of completed requests and the total.

    Raises:
        UserError: A task does not exist, is named twice, or has fewer examples than requested.
    """
    settings, cache = settings or Settings(), cache or Cache(None)
    loaded = [name if isinstance(name, Task) else catalog.load(name) for name in names]
    if len({task.config.name for task in loaded}) < len(loaded):
        raise UserError("a task is named twice; name each task once")
    questions = [question for task in loaded for question in ask(lm, task, settings)]
    responses = answer(lm, questions, cache=cache, share=share, progress=progress)
    samples = tuple(question.sample(by_name) for question, by_name in zip(questions, responses, strict=True))
    asked = {**asdict(settings), "shots": list(settings.shots)}
    configs, sizes = {t.config.name: t.config for t in loaded}, {t.config.name: len(t.documents) for t in loaded}
    return Result(lm.name, samples, configs, asked, sizes)


# ---- Questions --------------------------------------------------------------------------------------------------


def ask(lm: LanguageModel, task: Task, settings: Settings) -> Iterator[Question]:
    """The questions of a task; without examples the seed has no effect, so only one is used."""
    documents = limited(task.documents, settings.limit)
    for count in settings.shots:
        for seed in range(settings.seeds if count else 1):
            for document in documents:
                prompt = _prompt(task, document, count, seed, settings)
                asked = dict(_requests(lm, task, document, prompt))
                if settings.mutual_info and task.config.kind == "choose":
                    asked |= _options(lm, "", document, task.config.separator, "alone of")
                if settings.calibrated and task.config.kind == "choose":
                    asked |= _content_free(lm, task, document, prompt)
                yield Question(task, document, count, seed, prompt, asked)


def _content_free(lm: LanguageModel, task: Task, document: Document, prompt: str) -> dict[str, list[Request]]:
    """Return the requests for the options after content-free questions.

    The examples of the prompt stay.
    """
    requests: dict[str, list[Request]] = {}
    for i, text in enumerate(CONTENT_FREE):
        fields = dict.fromkeys(template.fields(task.config.prompt), text)
        empty = replace(document, prompt=template.render(task.config.prompt, fields))
        prompt_free = prompt.removesuffix(document.prompt) + empty.prompt
        requests |= _options(lm, prompt_free, empty, task.config.separator, f"content free {i} of")
    return requests


def limited(documents: Sequence[Document], limit: int) -> list[Document]:
    """Select `limit` documents (0: all) by the smallest hashes of their ids; the order stays."""
    if not limit:
        return list(documents)
    rank = {document.id: Choices(f"limit {document.id}").below(2**64) for document in documents}
    selected = sorted(rank, key=lambda name: rank[name])[:limit]
    return [document for document in documents if document.id in set(selected)]


def _prompt(task: Task, document: Document, count: int, seed: int, settings: Settings) -> str:
    named: Any = {"balanced": settings.balanced, "described": settings.described}
    return render_prompt(task, document, count, seed=seed, **named)


def _requests(lm: LanguageModel, task: Task, document: Document, prompt: str) -> dict[str, list[Request]]:
    match task.config.kind:
        case "generate":
            return {}
        case "perplexity":
            return {"text": scoring.rolling(lm, document.prompt)}
    return _options(lm, prompt, document, task.config.separator, "answer")


def _options(lm: LanguageModel, prompt: str, document: Document, separator: str, name: str) -> dict[str, list[Request]]:
    separator = separator if document.prompt else ""
    options = document.choices or document.answers
    return {f"{name} {i}": [scoring.encode(lm, prompt, separator + text)] for i, text in enumerate(options)}


# ---- Answers ----------------------------------------------------------------------------------------------------


def answer(
    lm: LanguageModel, questions: Sequence[Question], *, cache: Cache, share: bool, progress: Progress
) -> list[dict[str, Response]]:
    """The responses to each question, by request name; identical requests are computed once."""
    requests = {_key(request): request for q in questions for list_ in q.asked.values() for request in list_}
    texts = {_text_key(q): q for q in questions if q.task.config.kind == "generate"}
    missing = [key for key in requests if cache.get(key) is None]
    unread = [key for key in texts if cache.get(key) is None]
    total, done = len(missing) + len(unread), 0

    def keep(responses: dict[str, Response]) -> None:
        nonlocal done
        cache.add(responses)
        done += len(responses)
        progress(done, total)

    progress(0, total)
    if missing:
        ordered = [requests[key] for key in missing]
        scoring.score(
            lm,
            ordered,
            share=share,
            take=lambda scores: keep({missing[i]: (scored.logprob, scored.greedy) for i, scored in scores.items()}),
        )
    for batch in _batches(lm, [texts[key] for key in unread]):
        keep(dict(zip(map(_text_key, batch), _continued(lm, batch), strict=True)))
    return [_found(question, cache) for question in questions]


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
    return key_of(question.prompt, question.task.config.stop, question.task.config.max_tokens)


def _batches(lm: LanguageModel, questions: list[Question]) -> Iterator[list[Question]]:
    """Group questions with the same stops and similar length into batches."""
    kinds: dict[Any, list[Question]] = {}
    for question in questions:
        kinds.setdefault((question.task.config.stop, question.task.config.max_tokens), []).append(question)
    for alike in kinds.values():
        alike.sort(key=lambda question: len(question.prompt), reverse=True)
        yield from (alike[start : start + ROWS] for start in range(0, len(alike), ROWS))


def _continued(lm: LanguageModel, questions: list[Question]) -> list[str]:
    """Continue the prompts by greedy decoding."""
    config = questions[0].task.config
    sampling = Sampling(max_tokens=config.max_tokens, temperature=0, stop=config.stop)
    return continued(lm, [question.prompt for question in questions], sampling=sampling)


def continued(lm: LanguageModel, prompts: Sequence[str], *, sampling: Sampling) -> list[str]:
    """Generate continuations; a prompt that is too long is truncated on the left."""
    limit = incremental.limit(lm.model.config)
    room = max(1, limit - sampling.max_tokens) if limit else 0  # leaves space for the answer
    return generate(lm, [lm.ids(prompt)[-room:] for prompt in prompts], sampling=sampling)
