"""From tasks and a model to a result: which questions are asked, with which examples, and what was answered."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lmjax.config import UserError
from lmjax.evaluate import metrics, scoring
from lmjax.evaluate.cache import Cache, key_of
from lmjax.evaluate.records import Response, Result, Sample
from lmjax.evaluate.scoring import Request
from lmjax.generate import LanguageModel, Sampling, generate
from lmjax.models import incremental
from lmjax.prompting import shots as prompts
from lmjax.prompting import task as tasks
from lmjax.prompting import template
from lmjax.prompting.choices import Choices
from lmjax.prompting.task import Document, Task

CONTENT_FREE = ("N/A", "[MASK]", "")  # Zhao et al. 2021, section 5
ROWS = 32  # of a batch of generation

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """What is asked of every task.

    shots: the numbers of examples. seeds: how many draws of examples, for the spread. limit: documents of each task, an
    even draw, the smaller part of the larger (0: all). balanced: examples take the labels in turn. described: with the
    task's description. mutual_info, calibrated: the further requests of these two accuracies.
    """

    shots: tuple[int, ...] = (0,)
    seeds: int = 1
    limit: int = 0
    balanced: bool = False
    described: bool = False
    mutual_info: bool = False
    calibrated: bool = False

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 0 or len(set(self.shots)) < len(self.shots):
            raise UserError(f"shots: give different numbers of examples, each at least 0, got {list(self.shots)}")
        if self.seeds < 1 or self.limit < 0:
            raise UserError("seeds must be at least 1, and limit at least 0")


@dataclass(frozen=True)
class Question:
    """A document with its examples, and what the model is asked: log-probabilities, or (a text) a continuation."""

    task: Task
    document: Document
    shots: int
    seed: int
    prompt: str
    asked: dict[str, list[Request]]

    def sample(self, found: Mapping[str, Response]) -> Sample:
        """The outcome, from the responses to what was asked, by their names."""
        document, config, answers = self.document, self.task.config, _row(found, "answer")
        scores = [float(response[0]) for response in answers]
        match config.kind:
            case "choose":
                named: Any = {
                    "unconditional": _scores(found, "alone"),
                    "content_free": [s for i in range(len(CONTENT_FREE)) if (s := _scores(found, f"content free {i}"))],
                }
                measured = metrics.choose(scores, document.choices, gold=document.gold or 0, **named)
            case "pairs":
                measured = metrics.pairs(scores, gold=document.gold or 0)
            case "match":
                measured = metrics.match([(float(logprob), bool(greedy)) for logprob, greedy in answers])
            case "generate":
                answers = [found["text"]]
                folding = ("filters", "ignore_case", "ignore_punctuation")
                named = {name: getattr(config, name) for name in folding}
                measured = metrics.generate(str(found["text"]), document.answers, **named)
            case "perplexity":
                answers = [found["text"]]
                tokens = sum(len(request.continuation) for request in self.asked["text"])
                measured = metrics.perplexity(float(answers[0][0]), document.prompt, tokens=tokens)
        target = (document.answers or ("",))[0]
        return Sample(
            config.name, document.id, self.shots, self.seed, self.prompt, target, tuple(answers), dict(measured)
        )


def _row(found: Mapping[str, Response], name: str) -> list[Response]:
    """The responses to options 0, 1, ... of that name."""
    return [found[f"{name} {i}"] for i in range(len(found)) if f"{name} {i}" in found]


def _scores(found: Mapping[str, Response], name: str) -> list[float] | None:
    return [float(response[0]) for response in _row(found, f"{name} of")] or None


def evaluate(
    lm: LanguageModel,
    names: Iterable[str | Task],
    settings: Settings | None = None,
    *,
    cache: Cache | None = None,
    share: bool = True,
    progress: Progress = lambda done, total: None,
) -> Result:
    """What the model does on tasks (names as `prompting.task.load` has them, or tasks).

    The outcome for a document depends on the model, the task, the number of shots and the seed alone, whatever else is
    asked (up to rounding). cache: is asked first, and keeps what is new; `cache.of_model(lm)` is the user's. share: see
    `scoring.score`. progress: is called with how many requests have been answered, and of how many.
    UserError: no such task, or one that has fewer examples than are asked for.
    """
    settings, cache = settings or Settings(), cache or Cache(None)
    loaded = [name if isinstance(name, Task) else tasks.load(name) for name in names]
    if len({task.config.name for task in loaded}) < len(loaded):
        raise UserError("the same task is named twice")
    questions = [question for task in loaded for question in ask(lm, task, settings)]
    responses = answer(lm, questions, cache=cache, share=share, progress=progress)
    samples = tuple(question.sample(found) for question, found in zip(questions, responses, strict=True))
    asked = {**asdict(settings), "shots": list(settings.shots)}
    configs, sizes = {t.config.name: t.config for t in loaded}, {t.config.name: len(t.documents) for t in loaded}
    return Result(lm.name, samples, configs, asked, sizes)


# ---- Questions --------------------------------------------------------------------------------------------------


def ask(lm: LanguageModel, task: Task, settings: Settings) -> Iterator[Question]:
    """The questions of a task; without examples the seed decides nothing, so there is one."""
    documents = limited(task.documents, settings.limit)
    for count in settings.shots:
        for seed in range(settings.seeds if count else 1):
            for document in documents:
                prompt = _prompt(task, document, count, seed, settings)
                asked = dict(_requests(lm, task, document, prompt))
                if settings.mutual_info and task.config.kind == "choose":
                    asked |= _options(lm, "", document, task.config.separator, "alone of")
                if settings.calibrated and task.config.kind == "choose":
                    for i, text in enumerate(CONTENT_FREE):
                        fields = dict.fromkeys(template.fields(task.config.prompt), text)
                        empty = replace(document, prompt=template.render(task.config.prompt, fields))
                        prompt_free = prompt.removesuffix(document.prompt) + empty.prompt  # after the same examples
                        asked |= _options(lm, prompt_free, empty, task.config.separator, f"content free {i} of")
                yield Question(task, document, count, seed, prompt, asked)


def limited(documents: Sequence[Document], limit: int) -> list[Document]:
    """So many of the documents (0: all), in their order: those whose ids have the smallest hashes."""
    if not limit:
        return list(documents)
    rank = {document.id: Choices(f"limit {document.id}").below(2**64) for document in documents}
    kept = sorted(rank, key=lambda name: rank[name])[:limit]
    return [document for document in documents if document.id in set(kept)]


def _prompt(task: Task, document: Document, count: int, seed: int, settings: Settings) -> str:
    named: Any = {"balanced": settings.balanced, "described": settings.described}
    return prompts.prompt(task, document, count, seed=seed, **named)


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
    """The responses to what each question asks, by their names; what is asked twice is computed once."""
    requests = {_key(request): request for q in questions for list_ in q.asked.values() for request in list_}
    texts = {_text_key(q): q for q in questions if q.task.config.kind == "generate"}
    missing = [key for key in requests if cache.get(key) is None]
    unread = [key for key in texts if cache.get(key) is None]
    total, done = len(missing) + len(unread), 0

    def keep(found: dict[str, Response]) -> None:
        nonlocal done
        cache.add(found)
        done += len(found)
        progress(done, total)

    progress(0, total)
    if missing:
        ordered = [requests[key] for key in missing]
        scoring.score(
            lm,
            ordered,
            share=share,
            take=lambda found: keep({missing[i]: (one.logprob, one.greedy) for i, one in found.items()}),
        )
    for batch in _batches(lm, [texts[key] for key in unread]):
        keep(dict(zip(map(_text_key, batch), _continued(lm, batch), strict=True)))
    return [_found(question, cache) for question in questions]


def _found(question: Question, cache: Cache) -> dict[str, Response]:
    if question.task.config.kind == "generate":
        return {"text": _got(cache, _text_key(question))}
    found: dict[str, Response] = {}
    for name, requests in question.asked.items():
        parts: Any = [_got(cache, _key(request)) for request in requests]
        found[name] = (sum(part[0] for part in parts), all(part[1] for part in parts))
    return found


def _got(cache: Cache, key: str) -> Response:
    response = cache.get(key)
    assert response is not None
    return response


def _key(request: Request) -> str:
    return key_of(request.context, request.continuation)


def _text_key(question: Question) -> str:
    return key_of(question.prompt, question.task.config.stop, question.task.config.max_tokens)


def _batches(lm: LanguageModel, questions: list[Question]) -> Iterator[list[Question]]:
    """Questions of one kind of stop and about one length together."""
    kinds: dict[Any, list[Question]] = {}
    for question in questions:
        kinds.setdefault((question.task.config.stop, question.task.config.max_tokens), []).append(question)
    for alike in kinds.values():
        alike.sort(key=lambda question: len(question.prompt), reverse=True)
        yield from (alike[start : start + ROWS] for start in range(0, len(alike), ROWS))


def _continued(lm: LanguageModel, questions: list[Question]) -> list[str]:
    """What greedy decoding gives."""
    config = questions[0].task.config
    sampling = Sampling(max_tokens=config.max_tokens, temperature=0, stop=config.stop)
    return continued(lm, [question.prompt for question in questions], sampling=sampling)


def continued(lm: LanguageModel, prompts: Sequence[str], *, sampling: Sampling) -> list[str]:
    """What `generate` gives; a prompt too long loses its beginning, so that the answer has room."""
    limit = incremental.limit(lm.model.config)
    kept = max(1, limit - sampling.max_tokens) if limit else 0
    return generate(lm, [lm.ids(prompt)[-kept:] for prompt in prompts], sampling=sampling)
