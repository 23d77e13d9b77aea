"""The schema of preferences, the data of reward models and of DPO."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from lmjax.config.data import TokenizerConfig
from lmjax.config.encodings import text_encoding
from lmjax.config.ranges import id_ranges, interval, size


@dataclass(frozen=True)
class PreferenceConfig:
    """Pairs of answers to a prompt, of which one is preferred.

    A row has the columns `prompt`, `chosen` and `rejected`, each a text or a list of messages, and optionally `margin`,
    a number. Without `prompt`, it is the common beginning of the two answers.
    """

    #: Selects this member of the union.
    family: Literal["preferences"] = "preferences"
    #: Pairs to generate when `files` is empty: `reviews` (reviews of dishes with a known true reward), or a registered
    #: source.
    source: Literal["reviews"] | str = "reviews"
    #: Tables of pairs: jsonl, json, csv, tsv, parquet or arrow, also folders, globs and compressed files, as in
    #: `DataConfig`.
    files: tuple[str, ...] = ()
    #: Encoding of the files, as in `DataConfig`.
    encoding: Annotated[str, text_encoding()] = "utf-8"
    #: What a malformed row does, as in `DataConfig`. Ties, duplicates and empty answers are left out and counted in
    #: either case.
    on_bad_record: Literal["error", "skip"] = "error"
    #: Files of the validation split in the same form (empty: select a share of the prompts by a hash).
    validation_files: tuple[str, ...] = ()
    #: Chat template that writes turns, as in `ChatConfig`.
    template: str = ""
    #: Number of training pairs to read from the start (0: all).
    limit: Annotated[int, size(0)] = 0
    #: How text becomes token ids. Control tokens that it lacks are appended.
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    #: Share of the prompts that is reserved for validation. All pairs of a prompt are on one side.
    validation_fraction: Annotated[float, interval("(0, 1)")] = 0.05
    #: Number of length classes; the longer answer counts. A batch holds pairs of one class, which reduces padding.
    buckets: Annotated[int, size(1)] = 4
    #: Read the pairs of each epoch in a random order.
    shuffle: bool = True
    #: Half-open ranges of sample ids that are never trained on.
    exclude: Annotated[tuple[tuple[int, int], ...], id_ranges()] = ()
    #: Folder of prepared tokens (empty: in the user's cache directory).
    cache: str = ""
