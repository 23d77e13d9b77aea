"""The schema of conversations, the data of supervised fine-tuning."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from lmjax.config.data import DataConfig, RecordsConfig, TokenizerConfig
from lmjax.config.encodings import text_encoding
from lmjax.config.preferences import PreferenceConfig
from lmjax.config.ranges import id_ranges, interval, size


@dataclass(frozen=True)
class ChatConfig:
    """Conversations to learn from: questions and answers, in turns."""

    #: Selects this member of the union.
    family: Literal["chat"] = "chat"
    #: Conversations to generate when `files` is empty: `numbers_and_dates` (number words, digits and ISO dates, asked
    #: in several wordings), `reviews` (requests and reviews of dishes), `sorting` (seven digits to sort), or a
    #: registered source.
    source: Literal["numbers_and_dates", "reviews", "sorting"] | str = "numbers_and_dates"
    #: Tables of conversations: jsonl, json, csv, tsv, parquet or arrow, also folders, globs and compressed files, as in
    #: `DataConfig`.
    files: tuple[str, ...] = ()
    #: Encoding of the files, as in `DataConfig`.
    encoding: Annotated[str, text_encoding()] = "utf-8"
    #: What a malformed row, or a row without an answer, does: `error` ends the preparation with the row, `skip` leaves
    #: the row out and counts it.
    on_bad_record: Literal["error", "skip"] = "error"
    #: Files of the validation split in the same form (empty: select a share of the conversations by a hash of their
    #: prompt).
    validation_files: tuple[str, ...] = ()
    #: Columns of a row: `messages` (role and content), `prompt_completion` (`prompt`, `completion`: texts or messages),
    #: `sharegpt` (`conversations` of from and value), `alpaca` (`instruction`, `input`, `output`), `text` (plain text),
    #: or `auto`: the first of these whose columns a row has.
    format: Literal["auto", "messages", "prompt_completion", "sharegpt", "alpaca", "text"] = "auto"
    #: Chat template that writes turns: a file in the language of Jinja, as `chat_template.jinja` of a model folder.
    #: `ids`: control tokens mark turns. Empty: with `init_from`, the chat template of that model; control tokens if it
    #: has none.
    template: str = ""
    #: Turns that are learned: every answer of the assistant, the last one, or all tokens. Of a row of `text`, all
    #: tokens are learned.
    targets: Literal["assistant", "last", "all"] = "assistant"
    #: What happens to a conversation that is longer than the context: `drop` leaves it out, `cut` keeps its beginning.
    #: Both are counted.
    too_long: Literal["drop", "cut"] = "drop"
    #: Join short conversations to rows of the length of the context. Each is a segment of its own: attention and
    #: positions never cross into another conversation, and no conversation is divided.
    packed: bool = False
    #: Number of training conversations to read from the start (0: all).
    limit: Annotated[int, size(0)] = 0
    #: How text becomes token ids. Control tokens that it lacks are appended.
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    #: Share of the prompts that is reserved for validation.
    validation_fraction: Annotated[float, interval("(0, 1)")] = 0.05
    #: Number of length classes of rows that are not packed. A batch holds rows of one class, which reduces padding.
    buckets: Annotated[int, size(1)] = 4
    #: Read the conversations of each epoch in a random order.
    shuffle: bool = True
    #: Half-open ranges of sample ids that are never trained on.
    exclude: Annotated[tuple[tuple[int, int], ...], id_ranges()] = ()
    #: Folder of prepared tokens (empty: in the user's cache directory).
    cache: str = ""


#: What a run reads; `data.family` selects the member.
AnyDataConfig = DataConfig | RecordsConfig | ChatConfig | PreferenceConfig

#: Data with turns, whose tokenizer has control tokens.
ConversationConfig = ChatConfig | PreferenceConfig
