"""The schema of the data: what is read, and how text becomes token ids."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes token ids.

    kind: `bpe` trains a byte-level BPE of `vocab_size` entries on the corpus; `wordpiece` BERT's pieces of lower-case
        words; `bytes` needs no training (256 + 1); `characters` takes every character of the corpus; `file` loads
        `path`.
    path: a tokenizer.json, a folder with GPT-2's `encoder.json` + `vocab.bpe` (or `vocab.json` + `merges.txt`),
        a `.tiktoken` rank file, or a WordPiece `vocab.txt`.
    """

    kind: Literal["bpe", "wordpiece", "bytes", "characters", "file"] = "bpe"
    vocab_size: int = 2048
    path: str = ""


@dataclass(frozen=True)
class SourceConfig:
    """One source of a mixture; the fields mean what they mean in `DataConfig`."""

    source: str = "docstrings"
    files: tuple[str, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True)
class InContextConfig:
    """Documents that state a task, show some examples of it and answer a query, for `source=in_context`.

    tasks: names of bundled tasks, or folders and files of tasks. held_out: of these, the ones never to be rendered.
    documents: how many. shots: ((examples, weight), ...), the mixture of zero-, one- and few-shot forms.
    described: the share of documents that begin with the task's description.
    held_out_share: of each task's items (for a map: of its pairings) the share that is never rendered, but kept for
        the evaluation.
    """

    tasks: tuple[str, ...] = ("random_map",)
    held_out: tuple[str, ...] = ()
    documents: int = 100_000
    shots: tuple[tuple[int, float], ...] = ((0, 1.0), (1, 1.0), (8, 2.0))
    described: float = 0.5
    held_out_share: float = 0.25


@dataclass(frozen=True)
class DataConfig:
    """Text to read.

    source: `docstrings` (English that comes with Python), `in_context` (tasks with examples, as `in_context` says), or
        `hub:NAME` / `hub:NAME:SUBSET` (a dataset of the hub).
    files: local text, jsonl, json or parquet files, folders or globs, plain or .gz/.zst; given, `source` is unused.
    text_field: the column that holds the text in jsonl, parquet and hub data.
    document: what one document of a plain text file is: a blank-line separated paragraph, a line, or the file.
    mixture: several sources with weights, instead of `source` and `files`; exact over every window of samples.
    mixture_changes: announced changes, ((from_token, (weight, ...)), ...).
    validation: `hash` sends a document to validation by a hash of its content; `tail` cuts the last tokens off.
    shuffle: read the windows of each epoch in a random order, or as the text has them.
    packed: attention stays inside documents (segment ids); otherwise windows cut from the stream attend across.
    exclude: half-open ranges of sample ids that are never trained on.
    cache: where prepared tokens are kept; default: the user's cache directory.
    """

    family: Literal["text"] = "text"
    source: str = "docstrings"
    files: tuple[str, ...] = ()
    text_field: str = "text"
    document: Literal["paragraph", "line", "file"] = "paragraph"
    mixture: tuple[SourceConfig, ...] = ()
    mixture_changes: tuple[tuple[int, tuple[float, ...]], ...] = ()
    in_context: InContextConfig = field(default_factory=InContextConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    validation: Literal["hash", "tail"] = "hash"
    validation_fraction: float = 0.05
    shuffle: bool = True
    packed: bool = False
    exclude: tuple[tuple[int, int], ...] = ()
    cache: str = ""


@dataclass(frozen=True)
class RecordsConfig:
    """Records to learn from: pairs of texts, or texts with a label.

    source: generated pairs, `numbers` (words to digits) or `dates` (many forms to one), when `files` is empty;
        or generated labelled texts, `docstrings` (which part of Python's library a passage is from).
    files: jsonl files, or two text files whose lines belong together. validation_files: the same for validation;
        empty keeps a share of the records by a hash of their content.
    texts: the columns with text, one or two. label: the column with the label (empty: none).
    limit: the first so many training records only (0: all). lowercase: of every text.
    buckets: classes of length; records of one class are computed together, so that little is padding.
    """

    family: Literal["records"] = "records"
    source: Literal["numbers", "dates", "docstrings"] = "dates"
    files: tuple[str, ...] = ()
    validation_files: tuple[str, ...] = ()
    texts: tuple[str, ...] = ("source", "target")
    label: str = ""
    limit: int = 0
    lowercase: bool = False
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    validation_fraction: float = 0.05
    buckets: int = 4
    shuffle: bool = True
    exclude: tuple[tuple[int, int], ...] = ()
    cache: str = ""
