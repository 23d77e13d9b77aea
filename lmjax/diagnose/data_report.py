"""A report on prepared text: lengths, losses, duplicates, overlap with tasks.

An evaluation example is contaminated if it shares a run of N words with the training text, where N is the length of
the example at the 5th percentile of its task, but from 8 to 13 (Brown et al. 2020, appendix C).
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmjax.data.sources.duplicates import Seen, nothing_seen
from lmjax.data.store.store import Store, Tokens, holds_text
from lmjax.tasks.spec import Document, Task

SHORTEST, LONGEST = 8, 13  # words of a run that an example shares
SAMPLED = 10_000  # documents of a stream whose characters are counted
QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)
_WORD = re.compile(r"\w+")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class StreamReport:
    """A stream of documents."""

    name: str
    documents: int
    tokens: int
    #: UTF-8 bytes of the text.
    bytes: int
    #: Tokens of a document at `QUANTILES`.
    lengths: list[int]
    #: Share of the documents that are longer than the context.
    longer: float
    #: Share of unknown tokens.
    unknown: float
    #: Documents with the same tokens as an earlier one of the stream.
    duplicates: int
    #: Documents with the same tokens as one of the training streams (0 for these).
    trained_on: int
    #: Characters of a token, in about `SAMPLED` documents; None: the tokenizer does not give the text back.
    characters: float | None = None
    #: Documents with nearly the same text as an earlier one, of this or an earlier stream; None: not looked for.
    near: int | None = None


@dataclass(frozen=True)
class Contamination:
    """A task, and how many of its examples occur in the training text."""

    task: str
    #: Words of a run that counts.
    words: int
    examples: int
    #: Examples that have fewer words.
    short: int
    contaminated: int
    #: The ids of the first ones.
    first: list[str] = field(default_factory=list)


def streams(store: Store, *, context: int, near: bool = False) -> list[StreamReport]:
    """Return the figures of each stream of text, training first.

    Args:
        store: The prepared data.
        context: Tokens of a sample.
        near: Also look for documents with nearly the same text (`lmjax.data.sources.duplicates`).

    Raises:
        UserError: An optional package is missing.
    """
    seen = nothing_seen("near") if near else None
    names = sorted(filter(holds_text, store.streams), key=lambda name: name.startswith("validation"))
    known: set[bytes] = set()
    reports = []
    for name in names:
        tokens, is_validation = store.streams[name], name.startswith("validation")
        digests = list(_digests(store, tokens))
        lengths = np.diff(tokens.starts, append=len(tokens.ids))
        reports.append(
            StreamReport(
                name=name,
                documents=len(digests),
                tokens=len(tokens.ids),
                bytes=tokens.bytes,
                lengths=np.quantile(lengths, QUANTILES).astype(int).tolist() if len(lengths) else [],
                longer=float(np.mean(lengths > context)) if len(lengths) else 0.0,
                unknown=store.unknown_tokens(name) / max(1, len(tokens.ids)),
                duplicates=len(digests) - len(set(digests)),
                trained_on=sum(digest in known for digest in digests) if is_validation else 0,
                characters=_characters(store, tokens),
                near=None if seen is None else _near(store, tokens, seen),
            )
        )
        if not is_validation:
            known.update(digests)
    return reports


def _characters(store: Store, tokens: Tokens) -> float | None:
    if store.lossless is False:
        return None
    lengths = np.diff(tokens.starts, append=len(tokens.ids))
    step = -(-len(lengths) // SAMPLED) or 1
    sampled = itertools.islice(_documents(store, tokens), 0, None, step)
    return sum(len(store.tokenizer.decode(ids)) for ids in sampled) / max(1, int(lengths[::step].sum()))


def _near(store: Store, tokens: Tokens, seen: Seen) -> int:
    return sum(not seen.add(store.tokenizer.decode(ids)) for ids in _documents(store, tokens))


def _digests(store: Store, tokens: Tokens) -> Iterator[bytes]:
    for ids in _documents(store, tokens):
        yield hashlib.blake2b(ids.tobytes(), digest_size=16).digest()


def _documents(store: Store, tokens: Tokens) -> Iterator[np.ndarray]:
    """Yield the ids of each document without the token that ends it."""
    end, bounds = store.tokenizer.end_of_text, [*tokens.starts.tolist(), len(tokens.ids)]
    for start, stop in itertools.pairwise(bounds):
        ids = np.asarray(tokens.ids[start:stop])
        yield ids if end is None else ids[ids != end]


def contamination(store: Store, tasks: Sequence[Task], *, progress: Progress = lambda done, total: None) -> Any:
    """Return a `Contamination` for each task.

    Args:
        store: The prepared data.
        tasks: The tasks.
        progress: Called with the numbers of documents read, and of all.
    """
    wanted = [_Wanted(task) for task in tasks]
    training = [tokens for name, tokens in store.streams.items() if holds_text(name) and name.startswith("train")]
    training = training or store.sources
    total, done = sum(len(tokens.starts) for tokens in training), 0
    for tokens in training:
        for ids in _documents(store, tokens):
            words = _words(store.tokenizer.decode(ids))
            for task in wanted:
                task.read(words)
            done += 1
            progress(done, total)
    return [task.result() for task in wanted]


class _Wanted:
    """The runs of words of the examples of a task, and which of them were read."""

    def __init__(self, task: Task) -> None:
        examples = {document.id: _words(_text(document)) for document in task.documents}
        sizes = [len(words) for words in examples.values()]
        self.size = int(np.clip(np.quantile(sizes, 0.05), SHORTEST, LONGEST)) if sizes else SHORTEST
        self.task, self.examples = task, examples
        self.found: set[str] = set()
        self.runs: dict[int, list[str]] = {}
        for name, words in examples.items():
            for run in _runs(words, self.size):
                self.runs.setdefault(hash(run), []).append(name)

    def read(self, words: Sequence[str]) -> None:
        for run in _runs(words, self.size):
            self.found.update(self.runs.get(hash(run), ()))

    def result(self) -> Contamination:
        short = sum(len(words) < self.size for words in self.examples.values())
        names = sorted(self.found)
        return Contamination(self.task.config.name, self.size, len(self.examples), short, len(names), names[:5])


def _text(document: Document) -> str:
    return f"{document.prompt} {document.answers[0] if document.answers else ''}"


def _words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def _runs(words: Sequence[str], size: int) -> Iterable[tuple[str, ...]]:
    return (tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def table(reports: Sequence[StreamReport]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return a table with a column for each stream: its header and its rows."""
    columns = [_figures(report) for report in reports]
    rows = [(name, *(figures[name] for figures in columns)) for name in (columns[0] if columns else ())]
    return ("", *(report.name for report in reports)), rows


def _figures(report: StreamReport) -> dict[str, str]:
    lengths = report.lengths or [0] * len(QUANTILES)
    return {
        "documents": f"{report.documents:,}",
        "tokens": f"{report.tokens:,}",
        "bytes of text": f"{report.bytes:,}",
        "bytes a token": f"{report.bytes / max(1, report.tokens):.2f}",
        "characters a token": "" if report.characters is None else f"{report.characters:.2f}",
        "tokens of a document: shortest, median": f"{lengths[0]:,}, {lengths[1]:,}",
        "90 %, 99 %, longest": ", ".join(f"{length:,}" for length in lengths[2:]),
        "documents longer than the context": f"{report.longer:.1%}",
        "unknown tokens": f"{report.unknown:.2%}",
        "documents that occurred before": f"{report.duplicates:,}",
        "documents that are trained on": f"{report.trained_on:,}" if report.name.startswith("validation") else "",
        **({} if report.near is None else {"documents nearly as an earlier one": f"{report.near:,}"}),
    }
