"""The schema of the data: what is read, and how text becomes token ids."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from lmjax.config.encodings import text_encoding
from lmjax.config.ranges import id_ranges, interval, nonnegative, share, size, weight_changes, weighted_counts


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes token ids."""

    #: `bpe` trains a byte-level BPE on the corpus; `wordpiece` trains the pieces of lower-case words that BERT uses;
    #: `bytes` needs no training (256 + 1 entries); `characters` takes every character of the corpus; `file` loads
    #: `path`.
    kind: Literal["bpe", "wordpiece", "bytes", "characters", "file"] = "bpe"
    #: Number of entries of `bpe` and `wordpiece`.
    vocab_size: Annotated[int, size(1)] = 2048
    #: For `file`: a tokenizer.json, a folder with GPT-2's `encoder.json` + `vocab.bpe` (or `vocab.json` +
    #: `merges.txt`), a `.tiktoken` rank file, or a WordPiece `vocab.txt`. The other files of a folder, such as
    #: tokenizer_config.json, are followed; a file given alone stands alone.
    path: str = ""
    #: For `wordpiece`: convert text to lower case.
    lowercase: bool = True
    #: For `wordpiece`: remove combining marks. None: with `lowercase`, unless the text has vowel signs or tones
    #: (Devanagari, Thai, Arabic, kana, Vietnamese and others), which removing them would destroy.
    strip_accents: bool | None = None
    #: Number of control ids of a trained vocabulary: `<|system|>`, `<|user|>`, `<|assistant|>` and `<|end|>` for the
    #: turns of conversations, then `<|reserved_4|>` and so on. They are a part of `vocab_size`. Text never becomes one.
    reserved: Annotated[int, interval("[0, 1024]")] = 0


@dataclass(frozen=True)
class SourceConfig:
    """A source of a mixture; the fields have the same meaning as in `DataConfig`."""

    #: Name of the source.
    source: str = "docstrings"
    #: Local files; if set, `source` is ignored.
    files: tuple[str, ...] = ()
    #: Weight in the mixture of the training. Only the ratios of the weights count.
    weight: Annotated[float, nonnegative()] = 1.0
    #: Column of tables and hub data that holds the text (empty: `data.text_field`).
    text_field: str = ""


@dataclass(frozen=True)
class InContextConfig:
    """Documents for in-context learning, read with `source=in_context`.

    A document states a task, shows examples of it and answers a query.
    """

    #: Names of bundled tasks, or folders and files of tasks.
    tasks: tuple[str, ...] = ("random_map",)
    #: Names from `tasks` that are never rendered.
    held_out: tuple[str, ...] = ()
    #: Number of documents.
    documents: Annotated[int, size(1)] = 100_000
    #: Mixture of zero-, one- and few-shot forms, ((examples, weight), ...).
    shots: Annotated[tuple[tuple[int, float], ...], weighted_counts()] = ((0, 1.0), (1, 1.0), (8, 2.0))
    #: Share of documents that begin with the task's description.
    described: Annotated[float, share()] = 0.5
    #: Share of each task's items (for a map: of its pairings) that is never rendered and is reserved for the
    #: evaluation.
    held_out_share: Annotated[float, interval("[0, 1)")] = 0.25


@dataclass(frozen=True)
class DataConfig:
    """Text to read."""

    #: Selects this member of the union.
    family: Literal["text"] = "text"
    #: `docstrings` (English that comes with Python), `in_context` (tasks with examples, see `in_context`),
    #: `numbers_and_dates` (sentences about number words and ISO dates), or `hub:NAME` / `hub:NAME:SUBSET` (a dataset of
    #: the hub), or the name of a registered source.
    source: str = "docstrings"
    #: Local files of text, or of tables: jsonl, json, csv, tsv, parquet or arrow. Also folders, folders of
    #: `save_to_disk`, and globs; all but parquet and arrow also as .gz, .bz2, .xz or .zst. If set, `source` is ignored.
    files: tuple[str, ...] = ()
    #: Column of tables and hub data that holds the text.
    text_field: str = "text"
    #: Encoding of text files and of tables of text: an encoding of Python, such as `utf-16`, `latin-1` or `gb18030`.
    encoding: Annotated[str, text_encoding()] = "utf-8"
    #: What a malformed record of a table does: `error` ends the preparation with the line, `skip` leaves the record out
    #: and counts it.
    on_bad_record: Literal["error", "skip"] = "error"
    #: Unit that is one document of a plain text file. Blank lines separate paragraphs.
    document: Literal["paragraph", "line", "file"] = "paragraph"
    #: Leave out documents that occurred before in the same source, and count them: `exact` if the text is equal up to
    #: white space, `near` if most of its runs of five words are the same (MinHash; needs the extra `data`).
    deduplicate: Literal["none", "exact", "near"] = "none"
    #: Several sources with weights, instead of `source` and `files`. The shares are exact over every window of samples.
    mixture: tuple[SourceConfig, ...] = ()
    #: Announced changes of the weights, ((from_token, (weight, ...)), ...).
    mixture_changes: Annotated[tuple[tuple[int, tuple[float, ...]], ...], weight_changes()] = ()
    #: Documents of `source=in_context`.
    in_context: InContextConfig = field(default_factory=InContextConfig)
    #: How text becomes token ids.
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    #: `hash` assigns a document to validation by a hash of its content; `tail` takes the last tokens of each source.
    validation: Literal["hash", "tail"] = "hash"
    #: Share of the data that is reserved for validation.
    validation_fraction: Annotated[float, interval("(0, 1)")] = 0.05
    #: Read the windows of each epoch in a random order; otherwise in the order of the text.
    shuffle: bool = True
    #: Restrict attention to documents (segment ids); otherwise windows cut from the stream attend across documents.
    packed: bool = False
    #: Half-open ranges of sample ids that are never trained on.
    exclude: Annotated[tuple[tuple[int, int], ...], id_ranges()] = ()
    #: Folder of prepared tokens (empty: in the user's cache directory).
    cache: str = ""


@dataclass(frozen=True)
class RecordsConfig:
    """Records to learn from: pairs of texts, or texts with a label."""

    #: Selects this member of the union.
    family: Literal["records"] = "records"
    #: Records to generate when `files` is empty: the pairs `numbers` (words to digits) or `dates` (many forms to one),
    #: or the labelled texts `docstrings` (which part of Python's library a passage is from), or a registered source.
    source: Literal["numbers", "dates", "docstrings"] | str = "dates"
    #: Tables as in `DataConfig`, or two text files that pair line by line.
    files: tuple[str, ...] = ()
    #: Encoding of the files, as in `DataConfig`.
    encoding: Annotated[str, text_encoding()] = "utf-8"
    #: What a malformed record does, as in `DataConfig`.
    on_bad_record: Literal["error", "skip"] = "error"
    #: Files of the validation split in the same form (empty: select a share of the records by a hash of their content).
    validation_files: tuple[str, ...] = ()
    #: One or two columns with text.
    texts: tuple[str, ...] = ("source", "target")
    #: Column with the label (empty: none).
    label: str = ""
    #: Number of training records to read from the start (0: all).
    limit: Annotated[int, size(0)] = 0
    #: Convert every text to lower case.
    lowercase: bool = False
    #: How text becomes token ids.
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    #: Share of the records that is reserved for validation.
    validation_fraction: Annotated[float, interval("(0, 1)")] = 0.05
    #: Number of length classes. A batch holds records of one class, which reduces padding.
    buckets: Annotated[int, size(1)] = 4
    #: Read the records of each epoch in a random order.
    shuffle: bool = True
    #: Half-open ranges of sample ids that are never trained on.
    exclude: Annotated[tuple[tuple[int, int], ...], id_ranges()] = ()
    #: Folder of prepared tokens (empty: in the user's cache directory).
    cache: str = ""
