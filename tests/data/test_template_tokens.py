"""Conversations by chat templates: against ids by control tokens, against transformers, and targets written by hand."""

import importlib.util
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest

pytest.importorskip("jinja2")

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers
from tokenizers import Tokenizer as Backend

from lmjax.config import TokenizerConfig, UserError
from lmjax.data import template_tokens, tokenizer
from lmjax.data.chat_encoding import _MARK, ChatEncoder
from lmjax.data.chat_form import ChatForm
from lmjax.data.chat_template import ChatTemplate, chosen, recorded, with_template
from lmjax.data.chat_tokens import ChatTokens, chat_form, completed
from lmjax.data.sources.chat_rows import Role, Turn
from lmjax.data.tokenizer import Tokenizer

EOS = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Without a prompt for answers, like Mistral's.
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
)
# With a token after the last answer only, like Phi-3's.
LAST = CHATML.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{{ '<|im_end|>' }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
FORGETS = (
    "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}{{ '<s>' + m.content + '</s>' }}{% endif %}"
    "{% endfor %}"
)
CHAT = [("user", "hi"), ("assistant", "yes"), ("user", "so"), ("assistant", "no")]


def known(*names: str) -> Tokenizer:
    """Bytes with special tokens."""
    backend = tokenizer.build_tokenizer(TokenizerConfig("bytes"), lambda: iter(())).backend
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return Tokenizer(backend)


PLAIN = known("<|im_start|>", "<|im_end|>", "<s>", "</s>")


def form(source: str, spoken: Tokenizer = PLAIN) -> ChatForm:
    return chat_form(with_template(spoken, ChatTemplate(source, EOS)))


def turns(chat: Sequence[tuple[Role, str]] = CHAT, *, last: bool = False) -> list[Turn]:  # type: ignore[assignment]
    return [
        Turn(role, text, role == "assistant" and (not last or place == len(chat) - 1))
        for place, (role, text) in enumerate(chat)
    ]


def targets(written: ChatForm, chat: Sequence[Turn]) -> str:
    """The text of the targets, with a stroke where one ends."""
    rendered = written.rendered(chat)
    parts = ["|" if not target else PLAIN.decode([id]) for id, target in zip(rendered.ids, rendered.mask, strict=True)]
    return re.sub(r"\|\|+", "|", "".join(parts)).strip("|").replace("<|im_end|>|", "<|im_end|>| ").replace(" |", " ")


@pytest.mark.parametrize(
    ("source", "expected", "end"),
    [
        (CHATML, ["yes<|im_end|>", "no<|im_end|>"], "<|im_end|>"),
        (BRACKETS, [" yes</s>", " no</s>"], "</s>"),
        (LAST, ["yes<|im_end|>", "no<|im_end|>"], "<|im_end|>"),
        (MARKED, ["yes<|im_end|>", "no<|im_end|>"], "<|im_end|>"),  # the mark excludes the end, the targets do not
    ],
)
def test_the_targets_are_the_answers_with_their_ends(source: str, expected: list[str], end: str) -> None:
    written = form(source)
    assert PLAIN.token(written.end) == end
    for last in (False, True):
        rendered = written.rendered(turns(last=last))
        runs = "".join(map(str, rendered.mask))
        found = [PLAIN.decode(rendered.ids[m.start() : m.end()]) for m in re.finditer("1+", runs)]
        assert found == expected[-1:] if last else expected
        parts = written.last_answer(rendered.ids, rendered.mask)
        assert parts is not None
        assert parts[0] == written.prompt(turns()[:-1]) or source is MARKED  # which has no prompt for answers
        assert PLAIN.decode(parts[1]) == expected[-1].removesuffix(end)
    everything = written.rendered([Turn(turn.role, turn.text, True) for turn in turns()])
    assert everything.mask == [0] + [1] * (len(everything.ids) - 1)
    assert written.last_answer(everything.ids, everything.mask) is None
    text = written.rendered([Turn("text", "su", True)])
    assert (PLAIN.decode(text.ids), text.mask) == ("<|endoftext|>su<|endoftext|>", [0, 1, 1, 1])


@pytest.mark.parametrize("source", [CHATML, BRACKETS, LAST, MARKED])
def test_answers_to_a_prompt_follow_the_same_ids(source: str) -> None:
    """Prompt and answer are the beginning of the complete conversation, up to the end of the answer."""
    written, before = form(source), turns()[:-1]
    prompt, *answers = written.answered(before, ["no", "yes <|im_end|>"])
    assert prompt == written.prompt(before)
    for text, answer in zip(("no", "yes <|im_end|>"), answers, strict=True):
        whole = written.rendered([*before, Turn("assistant", text, True)]).ids
        assert prompt + answer == whole[: len(prompt) + len(answer)]
        assert [place for place, id in enumerate(answer) if id == written.end] == [len(answer) - 1]
        assert PLAIN.decode(answer[:-1]).removeprefix("<|im_start|>assistant").strip() == text
    assert written.end not in whole[len(prompt) + len(answer) :]


def test_answers_that_change_the_ids_before_them_are_refused() -> None:
    """The prompt of this template has the number of letters of the answer in it."""
    counts = "{{ messages[-1].content | length }}" + MARKED
    with pytest.raises(UserError, match="writes other ids before the answer 'yes'"):
        form(counts).answered(turns()[:-1], ["no", "yes"])


PARTS = st.lists(st.sampled_from(["<|im_start|>", "<|im_end|>", "</s>", "<", "a", "\n", "é"]), max_size=5).map("".join)


@settings(max_examples=25)
@given(st.lists(st.tuples(PARTS, PARTS), min_size=1, max_size=3))
def test_contents_never_become_special_tokens(pairs: Sequence[tuple[str, str]]) -> None:
    """Against the ids of ChatML by control tokens, whose texts are encoded alone."""
    chat = [(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    parts = turns(chat)  # type: ignore[arg-type]
    by_ids, by_template = ChatTokens(PLAIN), form(CHATML)
    assert by_template.rendered(parts) == by_ids.rendered(parts)
    assert by_template.prompt(parts[:-1]) == by_ids.prompt(parts[:-1])


def test_a_copy_with_other_names_encodes_as_the_tokenizer(words: Tokenizer) -> None:
    """Special tokens that take the blanks around them, and SentencePiece's blank before each piece."""
    encoder = ChatEncoder(words)
    text = "<|user|>\n a b<|end|> \n<|assistant|> ab <|end|>"
    plain = encoder.encode(text, [(10, 20), (35, len(text))])
    assert encoder.encode(text[:11] + _MARK + text[11:], [(10, 21), (36, len(text) + 1)]) == plain
    assert encoder.encode("a" + encoder.guard("<|end|>")).ids == words.encode("a<|end|>")


@pytest.fixture
def words() -> Tokenizer:
    letters = [*"▁ab\n<|usernditp>", "<0x0A>"]
    vocabulary = {"<unk>": 0} | {letter: place for place, letter in enumerate(dict.fromkeys(letters), 1)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence(steps)  # type: ignore[assignment]
    names = ("<|user|>", "<|assistant|>", "<|end|>")
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False, rstrip=True) for name in names])
    return Tokenizer(backend)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (FORGETS, r"begins with \"\{% for m in messages %\}.* does not end turn 2 with </s> .*data.targets=last"),
        (CHATML.replace("'<|im_end|>\n'", "'\n'"), "writes no special token of the tokenizer after an answer"),
        ("{{ messages | length }}", "does not write the text of an answer"),
        ("{{ raise_exception('System role not supported') }}", "cannot be rendered: System role not supported"),
        (LAST.replace("m.content + '<|im_end|>\n'", "m.content"), "does not end turn 2 with </s> in the same way"),
    ],
)
def test_a_template_that_hides_its_answers_is_refused(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        form(source).rendered(turns())
    assert "\n" not in str(error.value)
    if "targets=last" in message:
        assert form(source).rendered(turns(last=True)).mask == [0] * 8 + [1, 1, 1, 1]


def test_a_template_without_jinja_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmjax.data.template_tokens", None)
    with pytest.raises(UserError, match=r"jinja2, .* pip install .*\[chat\]', or .* data\.template=ids"):
        form(CHATML)


def test_ids_do_not_depend_on_the_day() -> None:
    written = form("{{ strftime_now('%d %b %Y') }}" + CHATML)
    assert "26 Jul 2024<|im_start|>" in PLAIN.decode(written.rendered(turns()).ids)


def test_a_template_is_recorded_in_the_tokenizer(tmp_path: Path) -> None:
    template = ChatTemplate(CHATML, EOS)
    spoken = with_template(PLAIN, template)
    assert recorded(PLAIN) is None
    assert recorded(Tokenizer(Backend.from_str(spoken.json))) == template
    assert completed(spoken) is spoken
    assert with_template(spoken, template) is spoken
    assert with_template(spoken, None).sha256 == PLAIN.sha256 != spoken.sha256
    assert with_template(spoken, ChatTemplate("b")).sha256 == with_template(PLAIN, ChatTemplate("b")).sha256
    assert spoken.encode("a<s>", special=True) == PLAIN.encode("a<s>", special=True)
    (tmp_path / "own.jinja").write_text("{{ 1 }}")
    assert recorded(chosen(spoken, str(tmp_path / "own.jinja"))) == ChatTemplate("{{ 1 }}", EOS)
    assert (recorded(chosen(spoken, "ids")), chosen(spoken, "")) == (None, spoken)
    exported = chat_form(spoken).with_template()
    assert exported.sha256 == PLAIN.sha256
    assert dict(exported.config) == EOS | {"chat_template": CHATML}


# ---- Against transformers ---------------------------------------------------------------------------------------


HEADERS = ("gptoss", "muse_glimmer", "qwen3_8")  # their twins mark a part of the prompt for an answer, too


def templates() -> list[Path]:
    spec = importlib.util.find_spec("trl")
    return sorted((Path(spec.origin or "").parent / "chat_templates").glob("*.jinja")) if spec else []


def trained(sources: Sequence[str]) -> Tokenizer:
    """A byte-level BPE with everything in the templates that looks like a special token."""
    text = "yes, no, and so on. user assistant system\n\n" * 50
    backend = tokenizer.build_tokenizer(TokenizerConfig("bpe", vocab_size=320), lambda: iter([text])).backend
    names = {name for source in sources for name in re.findall(r"<[|\uff5c\w/][^<>\s'\"]*>", source)}
    names -= {"<think>", "</think>", "<s>", "</s>"}
    backend.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in ["<s>", "</s>", *sorted(names)]]
    )
    return Tokenizer(backend)


@pytest.mark.slow
def test_masks_are_those_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every template of TRL that renders text: ids and, with marks, the mask of the assistant's tokens are equal.

    The targets of a template without marks are those of its twin with marks, except for what follows an end.
    """
    transformers, files = pytest.importorskip("transformers"), templates()
    if not files:
        pytest.skip("trl is not installed")
    monkeypatch.setattr(template_tokens, "DATE", datetime.now())  # which transformers writes
    chat = [("user", "hi <there>"), ("assistant", "yes, é"), ("user", "so"), ("assistant", "no")]
    messages = [{"role": role, "content": text} for role, text in chat]
    compared, twins = 0, 0
    for file in files:
        source = file.read_text()
        spoken = trained([source])
        reference = transformers.PreTrainedTokenizerFast(
            tokenizer_object=spoken.recognizing, chat_template=source, **EOS
        )
        try:
            ours = form(source, spoken).rendered(turns(chat))  # type: ignore[arg-type]
        except UserError:
            continue
        theirs = reference.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert ours.ids == theirs["input_ids"], file.name
        if any(theirs["assistant_masks"]):
            assert ours.mask == theirs["assistant_masks"], file.name
            compared += 1
            continue
        twin = file.with_name(f"{file.stem}_training.jinja")
        if twin.is_file() and file.stem not in HEADERS:
            reference.chat_template = twin.read_text()
            marked = reference.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
            if marked["input_ids"] == ours.ids:
                extra = [id for id, a, b in zip(ours.ids, ours.mask, marked["assistant_masks"], strict=True) if a != b]
                assert spoken.decode(extra).replace("</s>", "").replace("<|END_OF_TURN_TOKEN|>", "").strip() == ""
                twins += 1
    assert (compared, twins) >= (28, 10), (compared, twins)
