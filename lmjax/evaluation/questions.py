"""Questions to a model: a document with its examples, its requests and its score."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lmjax.config import UserError
from lmjax.evaluation import scoring, task_metrics
from lmjax.evaluation.results import Response, Sample
from lmjax.evaluation.scoring import Request
from lmjax.evaluation.settings import Settings
from lmjax.inference import incremental
from lmjax.inference.language_model import LanguageModel
from lmjax.tasks import shots, template
from lmjax.tasks.draws import Choices
from lmjax.tasks.spec import Document, Task, digest

CONTENT_FREE = ("N/A", "[MASK]", "")  # Zhao et al. 2021, section 5
LEAST, MARGIN = 32, 8  # generated tokens derived from the answers: the minimum, and those beyond the longest answer


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
    asked: dict[str, list[Request]] = field(default_factory=dict)
    #: Ids of the prompt that fit, for a task of kind `generate`.
    ids: tuple[int, ...] = ()
    #: Bytes of the first token of a perplexity, if it is not predicted because nothing precedes it.
    unpredicted: int = 0
    #: Maximum number of tokens of the prompt and of an answer that did not fit.
    cut: tuple[int, int] = (0, 0)

    @property
    def size(self) -> int:
        """The number of tokens of all requests."""
        requests = (request for listed in self.asked.values() for request in listed)
        return len(self.ids) + sum(len(request.context) + len(request.continuation) for request in requests)

    def has(self, token: int | None) -> bool:
        """Whether a request has a token."""
        requests = (request for listed in self.asked.values() for request in listed)
        return token is not None and (token in self.ids or any(token in part for parts in requests for part in parts))

    def sample(self, responses: Mapping[str, Response]) -> Sample:
        """Score the responses to the requests, by their names.

        Raises:
            UserError: A score has no rank, or a filter takes too long; the message names the task and the document.
        """
        answers = _row(responses, "answer") or [responses["text"]]
        try:
            measures = self._measures(responses, answers)
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from None
        target = (self.document.answers or ("",))[0]
        return Sample(
            *(self.task.config.name, self.document.id, self.shots, self.seed, self.prompt, target, tuple(answers)),
            metrics=measures,
            digest=digest(self.document),
            named=self.document.named,
            truncated=self.cut[0],
            answer_truncated=self.cut[1],
        )

    @property
    def where(self) -> str:
        """The task and the document, for messages."""
        return f"the task '{self.task.config.name}', document '{self.document.id}'"

    def _measures(self, responses: Mapping[str, Response], answers: Sequence[Response]) -> dict[str, float]:
        document, config = self.document, self.task.config
        match config.kind:
            case "choose":
                free = (_scores(responses, f"content free {i}") for i in range(len(CONTENT_FREE)))
                named: Any = {"unconditional": _scores(responses, "alone"), "content_free": [s for s in free if s]}
                named |= {"gold": document.gold or 0, "grades": document.grades}
                return task_metrics.choose([float(r[0]) for r in answers], document.choices, **named)
            case "pairs":
                return task_metrics.pairs([float(r[0]) for r in answers], gold=document.gold or 0)
            case "match":
                asked = [self.asked[f"answer {i}"][0] for i in range(len(answers))]
                words = [len(text.split()) for text in document.answers]
                sizes = [(len(request.continuation), count) for request, count in zip(asked, words, strict=True)]
                return task_metrics.match([(float(r[0]), bool(r[1])) for r in answers], sizes)
            case "generate":
                folding = ("filters", "ignore_case", "ignore_punctuation", "metrics")
                named = {name: getattr(config, name) for name in folding}
                return task_metrics.generate(str(answers[0]), document.answers, **named)
            case "perplexity":
                tokens = sum(len(request.continuation) for request in self.asked["text"])
                measures = task_metrics.perplexity(float(answers[0][0]), document.prompt, tokens=tokens)
                words = measures["words"] if tokens else 0.0
                return measures | {"words": words, "bytes": measures["bytes"] - self.unpredicted}


def _row(responses: Mapping[str, Response], name: str) -> list[Response]:
    """The responses to the options 0, 1, ... of a request name."""
    return [responses[f"{name} {i}"] for i in range(len(responses)) if f"{name} {i}" in responses]


def _scores(responses: Mapping[str, Response], name: str) -> list[float] | None:
    return [float(response[0]) for response in _row(responses, f"{name} of")] or None


# ---- From a task to questions -----------------------------------------------------------------------------------


def prepared(lm: LanguageModel, task: Task, settings: Settings) -> Task:
    """Return the task with its number of generated tokens; check that it can be asked.

    Raises:
        UserError: A document has too few examples, no space is left for the prompts, or the window of a perplexity is
            too long.
    """
    config, limit = task.config, incremental.limit(lm.model.config)
    if config.kind == "perplexity" and limit and settings.window > limit:
        raise UserError(f"window={settings.window} is longer than the context of the model, {limit} tokens")
    if config.kind == "generate":
        config = replace(config, max_tokens=settings.max_tokens or config.max_tokens or _derived(lm, task))
        space(lm, config.max_tokens, where=f"the task '{config.name}'")
    most = max(settings.shots)
    for document in limited(task.documents, settings.limit) if most else ():
        shots.examples(task, document, most, balanced=settings.balanced)
    return replace(task, config=config)


def space(lm: LanguageModel, max_tokens: int, *, where: str = "") -> int:
    """Return the number of tokens that are left for a prompt (0: no limit).

    Raises:
        UserError: No token is left.
    """
    limit = incremental.limit(lm.model.config)
    if limit is not None and limit <= max_tokens:
        raise UserError(
            f"{where + ': ' if where else ''}max_tokens = {max_tokens} leaves no space for the prompt, because the "
            f"context of the model has {limit} tokens; ask for fewer tokens"
        )
    return limit - max_tokens if limit else 0


def _derived(lm: LanguageModel, task: Task) -> int:
    """The number of generated tokens that the longest answer needs."""
    texts = [task.config.separator + answer for document in task.documents for answer in document.answers]
    return max(LEAST, MARGIN + max(map(len, lm.tokenizer.encode_batch(texts))))


def unreachable(lm: LanguageModel, task: Task, settings: Settings) -> dict[str, int]:
    """Count the documents whose accepted answers cannot be generated, by the reason."""
    config, counts = task.config, {"stop": 0, "max_tokens": 0}
    if config.kind != "generate":
        return {}
    for document in limited(task.documents, settings.limit):
        texts = [(config.separator if document.prompt else "") + answer.rstrip() for answer in document.answers]
        possible = [text for text in texts if not any(stop in text for stop in config.stop)]
        if not possible:
            counts["stop"] += 1
        elif min(map(len, lm.tokenizer.encode_batch(possible))) > config.max_tokens:
            counts["max_tokens"] += 1
    return {reason: count for reason, count in counts.items() if count}


def count(task: Task, settings: Settings) -> int:
    """The number of questions of a task."""
    documents = min(settings.limit or len(task.documents), len(task.documents))
    return documents * sum(_seeds(task, count, settings) for count in settings.shots)


def _seeds(task: Task, count: int, settings: Settings) -> int:
    """The number of draws of the examples; one if nothing is drawn."""
    drawn = count and not task.fixed and not task.config.shots.first
    return settings.seeds if drawn else 1


def ask(lm: LanguageModel, task: Task, settings: Settings) -> Iterator[Question]:
    """The questions of a task, in the order of shots, seeds and documents."""
    documents = limited(task.documents, settings.limit)
    for count in settings.shots:
        for seed in range(_seeds(task, count, settings)):
            for document in documents:
                prompt = _prompt(task, document, count, seed, settings)
                question = Question(task, document, count, seed, prompt)
                generated = task.config.kind == "generate"
                yield _with_ids(lm, question) if generated else _with_requests(lm, question, settings)


def _with_ids(lm: LanguageModel, question: Question) -> Question:
    """Add the ids of the prompt that leave space for the generated tokens."""
    ids, room = lm.ids(question.prompt), space(lm, question.task.config.max_tokens)
    if not ids:
        raise UserError(
            f"{question.where}: the prompt is empty, and nothing precedes it; choose another first token (bos or end)"
        )
    return replace(question, ids=tuple(ids[-room:]), cut=(max(0, len(ids) - room) if room else 0, 0))


def _with_requests(lm: LanguageModel, question: Question, settings: Settings) -> Question:
    """Add the log-probability requests, and what `scoring.score` cuts from them."""
    limit = incremental.limit(lm.model.config)
    asked = _requests(lm, question.task, question.document, question.prompt, settings)
    cuts = [scoring.cut(request, limit) for listed in asked.values() for request in listed]
    most = (max((lost for lost, _ in cuts), default=0), max((lost for _, lost in cuts), default=0))
    first: list[int] = []
    if question.task.config.kind == "perplexity" and not lm.before():
        first = lm.encode(question.document.prompt)[:1]
    return replace(question, asked=asked, cut=most, unpredicted=lm.tokenizer.nbytes(np.array(first, np.int64)))


def limited(documents: Sequence[Document], limit: int) -> list[Document]:
    """Select `limit` documents (0: all) by the smallest hashes of their ids; the order stays."""
    if not limit:
        return list(documents)
    rank = {document.id: Choices(f"limit {document.id}").below(2**64) for document in documents}
    selected = set(sorted(rank, key=lambda name: rank[name])[:limit])
    return [document for document in documents if document.id in selected]


def _prompt(task: Task, document: Document, count: int, seed: int, settings: Settings) -> str:
    named: Any = {"balanced": settings.balanced, "described": settings.described}
    return shots.render_prompt(task, document, count, seed=seed, **named)


def _requests(
    lm: LanguageModel, task: Task, document: Document, prompt: str, settings: Settings
) -> dict[str, list[Request]]:
    if task.config.kind == "perplexity":
        return {"text": scoring.rolling(lm, document.prompt, context=settings.window or None)}
    separator = task.config.separator
    asked = _options(lm, prompt, document, separator, "answer")
    if settings.mutual_info and task.config.kind == "choose":
        asked |= _options(lm, "", document, separator, "alone of")
    if settings.calibrated and task.config.kind == "choose":
        asked |= _content_free(lm, task, document, prompt)
    return asked


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


def _options(lm: LanguageModel, prompt: str, document: Document, separator: str, name: str) -> dict[str, list[Request]]:
    separator = separator if document.prompt else ""
    options = document.choices or document.answers
    return {f"{name} {i}": [scoring.encode(lm, prompt, separator + text)] for i, text in enumerate(options)}
