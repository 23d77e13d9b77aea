r"""Conversations as token ids.

Control tokens are added by id, and contents never become control tokens.

    <|system|>text<|user|>text<|assistant|>text<|end|>          lmjax's own tokens
    <|im_start|>user\ntext<|im_end|>\n                          ChatML, for vocabularies that have its tokens

A user who writes `<|end|>` gets the ordinary tokens of these letters. The targets are the text of an answer and the
token that ends it; what precedes an answer is written for the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenizers import Tokenizer as Backend

from lmjax.config import UserError
from lmjax.data import chat_template
from lmjax.data.batches.chat import last_answer
from lmjax.data.chat_form import ChatForm, Rendered
from lmjax.data.control_tokens import CONTROL, special
from lmjax.data.sources.chat_rows import Role, Turn
from lmjax.data.tokenizer import Tokenizer
from lmjax.system.extras import missing

_SYSTEM, _USER, _ASSISTANT, _END = CONTROL
_CHATML = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class ChatTokens(ChatForm):
    """How turns become token ids with a tokenizer that has the control tokens.

    Raises:
        UserError: The tokenizer has neither lmjax's control tokens nor those of ChatML.
    """

    def __post_init__(self) -> None:
        if not (_has(self.tokenizer, CONTROL) or self.is_chatml):
            raise UserError(
                "the tokenizer has no control tokens for the turns of a conversation (such as <|user|>): this model "
                "was not trained on conversations; fine-tune it with `python train.py sft init_from=MODEL`"
            )

    @cached_property
    def is_chatml(self) -> bool:
        """Whether the tokens are those of ChatML."""
        return not _has(self.tokenizer, CONTROL) and _has(self.tokenizer, _CHATML)

    @cached_property
    def end(self) -> int:
        """The id that ends an answer."""
        return self._id(_CHATML[1] if self.is_chatml else _END)

    def describe(self) -> str:
        """Describe the tokens that begin and end turns."""
        names = _CHATML if self.is_chatml else CONTROL
        return f"turns are marked by {', '.join(f'{name} ({self._id(name)})' for name in names)}"

    @property
    def template(self) -> str:
        """The same form as a chat template, for other programs.

        Those encode the rendered text, so that a control token in a content is one there.
        """
        if self.is_chatml:
            start, end = _CHATML
            turn = f"{{{{ '{start}' + message['role'] + '\\n' + message['content'] + '{end}' + '\\n' }}}}"
            lead = f"{start}assistant\\n"
        else:
            turn = "{{ '<|' + message['role'] + '|>' + message['content'] }}"
            turn += f"{{% if message['role'] == 'assistant' %}}{{{{ '{_END}' }}}}{{% endif %}}"
            lead = _ASSISTANT
        reply = f"{{% if add_generation_prompt %}}{{{{ '{lead}' }}}}{{% endif %}}"
        return f"{{% for message in messages %}}{turn}{{% endfor %}}{reply}"

    def with_template(self) -> Tokenizer:
        """Return the tokenizer with the chat template among the settings that an export writes."""
        known = self.tokenizer
        return Tokenizer(known.backend, known.named, {**known.config, "chat_template": self.template})

    def before(self, role: Role) -> list[int]:
        """Return the ids before the text of a turn."""
        if role == "text":
            end = self.tokenizer.end_of_text
            return [] if end is None else [end]
        if self.is_chatml:
            return [self._id(_CHATML[0]), *self.tokenizer.encode(f"{role}\n")]
        return [self._id({"system": _SYSTEM, "user": _USER, "assistant": _ASSISTANT}[role])]

    def after(self, role: Role) -> tuple[list[int], list[int]]:
        """Return the ids after the text of a turn: the speaker's, and those of the template."""
        if role == "text":
            return self.before("text"), []
        if self.is_chatml:
            return [self.end], self.tokenizer.encode("\n")
        return [self.end] if role == "assistant" else [], []

    def render(self, turns: Sequence[Turn], texts: Sequence[Sequence[int]]) -> Rendered:
        """Return the ids and the targets of a conversation.

        Args:
            turns: The turns.
            texts: Ids of the text of each turn, encoded as ordinary text.
        """
        ids: list[int] = []
        mask: list[int] = []
        for turn, text in zip(turns, texts, strict=True):
            before, (end, after) = self.before(turn.role), self.after(turn.role)
            ids += [*before, *text, *end, *after]
            mask += [0] * len(before) + [int(turn.learn)] * (len(text) + len(end)) + [0] * len(after)
        if all(turn.learn for turn in turns) and any(turn.role != "assistant" for turn in turns):
            mask = [1] * len(ids)  # all tokens are learned, those of the template too
        mask[:1] = [0] * len(mask[:1])
        return Rendered(ids, mask)

    def rendered(self, turns: Sequence[Turn]) -> Rendered:
        """Return the ids and the targets of a conversation."""
        return self.render(turns, self.tokenizer.encode_batch([turn.text for turn in turns]))

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids of turns and of the beginning of an answer."""
        return self.rendered(turns).ids + self.before("assistant")

    def answered(self, turns: Sequence[Turn], answers: Sequence[str]) -> list[list[int]]:
        """Return the ids of turns up to an answer, and those of each answer with its end."""
        return [self.prompt(turns), *([*ids, self.end] for ids in self.tokenizer.encode_batch(list(answers)))]

    def last_answer(self, ids: Sequence[int], mask: Sequence[int]) -> tuple[list[int], list[int]] | None:
        """Return the ids before the last answer, and those of the answer without its end.

        None if the conversation has no answer.

        Args:
            ids: The conversation.
            mask: Its targets, which may be more than the answers.
        """
        return last_answer(ids, header=self.before("assistant"), end=self.end)

    def _id(self, name: str) -> int:
        token = self.tokenizer.id_of_token(name)
        assert token is not None
        return token


def chat_form(tokenizer: Tokenizer) -> ChatForm:
    """Return the form of conversations: by the recorded chat template, or by control tokens.

    Raises:
        UserError: The tokenizer has neither, or the chat template cannot be used.
    """
    template = chat_template.recorded(tokenizer)
    if template is None:
        return ChatTokens(tokenizer)
    try:
        from lmjax.data.template_tokens import TemplateTokens  # needs an optional package
    except ModuleNotFoundError:
        otherwise = ", or mark turns by control tokens with data.template=ids"
        raise missing("the chat template of a model", "jinja2", "chat", otherwise=otherwise) from None
    return TemplateTokens(tokenizer, template)


def completed(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with control tokens: lmjax's are appended if it has none.

    A tokenizer with a recorded chat template needs none.

    Raises:
        UserError: They cannot be appended.
    """
    if chat_template.recorded(tokenizer) is not None:
        return tokenizer
    if _has(tokenizer, CONTROL) or _has(tokenizer, _CHATML):
        return tokenizer
    return _with_tokens(tokenizer, CONTROL)


def _with_tokens(tokenizer: Tokenizer, names: Sequence[str]) -> Tokenizer:
    """Return the tokenizer with further special tokens, whose ids follow its last one."""
    lacking = [name for name in names if tokenizer.id_of_token(name) is None]
    backend = Backend.from_str(tokenizer.json)
    backend.add_special_tokens([special(name) for name in lacking])
    larger = Tokenizer(backend, tokenizer.named, tokenizer.config)
    ids = [larger.id_of_token(name) for name in lacking]
    if ids != list(range(tokenizer.vocab_size, tokenizer.vocab_size + len(lacking))):
        raise UserError(
            f"the tokenizer lacks the control tokens {', '.join(lacking)}, and they cannot be appended, since its ids "
            "have gaps; choose a tokenizer that has them"
        )
    return larger


def _has(tokenizer: Tokenizer, names: Sequence[str]) -> bool:
    return all(tokenizer.id_of_token(name) is not None for name in names)
