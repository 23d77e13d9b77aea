"""Tokenizers in folders: every setting of the other files counts as in AutoTokenizer of transformers."""

import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from lmjax.config import TokenizerConfig, UserError
from lmjax.data import tokenizer, tokenizer_settings
from lmjax.data.tokenizer import END_OF_TEXT, Tokenizer
from lmjax.data.tokenizer_classes import CLASSES
from lmjax.data.tokenizer_registry import ALIASES, BACKEND, NOT_FOLLOWED, OVERRIDES, REGISTERED

CORPUS = "The café's 12 bees hum.\n\n  Don't  PANIC: naïve Bees, 中文 1999!\r\n\tx_y = (z)" * 3
TEXTS = [
    CORPUS,
    " a b",
    "hello\n\nQ: x = (y)\n\nQ",
    "ÀÉ été\u0301 PARIS paris",
    "中文bees",
    "12345  678",
    "don't we'LL",
]
MODELS = ["", "gpt2", "llama", "mistral", "qwen2", "qwen3", "gpt_neox", "cohere", "opt", "phi3", "qwen3_5_text"]
CLASS_NAMES = [
    "",
    "GPT2Tokenizer",
    "GPT2TokenizerFast",
    "Qwen2Tokenizer",
    "GPTNeoXTokenizerFast",
    "Qwen3_5Tokenizer",
    "CohereTokenizerFast",
    "CodeGenTokenizer",
    "PreTrainedTokenizerFast",
]
CONFIGS = {  # config.json that transformers accepts
    "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 1},
    "": {},
}


def bpe(rng: random.Random) -> tokenizers.Tokenizer:
    """A byte-level BPE with steps that a class may or may not have."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=rng.random() < 0.3)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=rng.choice([[], [END_OF_TEXT], [END_OF_TEXT, "<s>", "<eos>"], ["<s>", "</s>", "<unk>"]]),
        show_progress=False,
    )
    backend.train_from_iterator([CORPUS, *TEXTS], trainer)
    if rng.random() < 0.3:
        backend.normalizer = normalizers.NFC()
    if rng.random() < 0.4 and backend.token_to_id("<s>") is not None:
        begin = ("<s>", backend.token_to_id("<s>"))
        backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [begin])
    return backend


def settings(rng: random.Random) -> dict[str, Any]:
    """A tokenizer_config.json."""
    chosen: dict[str, Any] = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token", "image_token"):
        if rng.random() < 0.4:
            chosen[name] = rng.choice(["<s>", "</s>", "<eos>", "<new>", END_OF_TEXT])
    for name in ("add_bos_token", "add_prefix_space", "clean_up_tokenization_spaces"):
        if rng.random() < 0.3:
            chosen[name] = rng.random() < 0.5
    if rng.random() < 0.3:
        flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
        tokens = {"<mine>": False, "<turn>": True}
        chosen["added_tokens_decoder"] = {
            str(400 + i): {"content": token, "special": special} | flags
            for i, (token, special) in enumerate(tokens.items())
        }
    if rng.random() < 0.3:
        chosen[rng.choice(["extra_special_tokens", "additional_special_tokens"])] = ["<extra>", "<turn>"]
    if (name := rng.choice(CLASS_NAMES)) != "":
        chosen["tokenizer_class"] = name
    return chosen


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value), "utf-8")


def folder_of(path: Path, rng: random.Random) -> Path:
    """A folder with a tokenizer.json or two files, and what other files say."""
    path.mkdir()
    backend, model_type = bpe(rng), rng.choice(MODELS)
    if rng.random() < 0.6:
        backend.save(str(path / "tokenizer.json"))
    else:
        model = json.loads(backend.to_str())["model"]
        write(path, "vocab.json", model["vocab"])
        (path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]), "utf-8")
    if model_type or rng.random() < 0.5:
        write(path, "config.json", {"model_type": model_type, **CONFIGS.get(model_type, {})} if model_type else {})
    write(path, "tokenizer_config.json", settings(rng))
    if rng.random() < 0.3:
        write(path, "special_tokens_map.json", {"eos_token": {"content": "<eos>", "lstrip": False}, "pad_token": "<p>"})
    if rng.random() < 0.3:
        # A plain "<eos>" differs on purpose: lmjax makes the token that ends a document special.
        both = (path / "special_tokens_map.json").is_file()
        write(path, "added_tokens.json", {"<older>": 500, "<eos>" if both else "<other>": 501})
    return path


def bert_folder(path: Path, rng: random.Random) -> Path:
    path.mkdir()
    letters = sorted(set("thecafébsumdonPANICParis中文1289éàÀ'.,:!"))
    entries = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "<e>",
        *letters,
        *("##" + c for c in letters),
        "paris",
        "bees",
    ]
    (path / "vocab.txt").write_text("\n".join(entries), "utf-8")
    chosen = {name: rng.random() < 0.5 for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars")}
    chosen = {name: value for name, value in chosen.items() if rng.random() < 0.6}
    if rng.random() < 0.5:
        chosen |= {"tokenizer_class": rng.choice(["BertTokenizer", "BertTokenizerFast"])}
    if rng.random() < 0.3:
        chosen |= {"eos_token": "<e>"}
    write(path, "tokenizer_config.json", chosen)
    write(path, "config.json", {"model_type": "bert"})
    if rng.random() < 0.5:
        backend = tokenizers.Tokenizer(
            models.WordPiece({entry: i for i, entry in enumerate(entries)}, unk_token="[UNK]")
        )
        backend.normalizer = normalizers.BertNormalizer(lowercase=rng.random() < 0.5)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        backend.add_special_tokens(entries[:5])
        backend.save(str(path / "tokenizer.json"))
    return path


def llama_folder(path: Path, rng: random.Random) -> Path:
    """LLaMA-2's kind of tokenizer.json: a blank is prepended by the normalizer; other characters become bytes."""
    path.mkdir()
    special = ["<unk>", "<s>", "</s>"]
    letters = ["\u2581", *"aehlostu.'123PI"]
    merges = [("\u2581", "h"), ("h", "e"), ("\u2581", "\u2581"), ("l", "l"), ("e", "ll"), ("\u2581", "s")]
    tokens = special + [f"<0x{byte:02X}>" for byte in range(256)] + letters + [a + b for a, b in merges]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if rng.random() < 0.5:
        backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    backend.save(str(path / "tokenizer.json"))
    chosen: dict[str, Any] = {
        name: rng.random() < 0.5 for name in ("legacy", "add_prefix_space", "add_bos_token") if rng.random() < 0.5
    }
    if rng.random() < 0.7:
        classes = ["LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "GemmaTokenizerFast", "Unknown"]
        chosen["tokenizer_class"] = rng.choice(classes)
    write(path, "tokenizer_config.json", chosen | {"eos_token": "</s>"})
    write(path, "config.json", {"model_type": rng.choice(["llama", "mistral", "gemma2", "code_llama", "idefics2"])})
    return path


def assert_equal(loaded: Tokenizer, path: Path, transformers: Any) -> None:
    """Compare with AutoTokenizer: ids with and without special tokens in the text, text, names, first tokens."""
    expected = transformers.AutoTokenizer.from_pretrained(path)
    plain = transformers.AutoTokenizer.from_pretrained(path, split_special_tokens=True)
    for text in (*TEXTS, "a<s>b<eos> <new>c<mine> <turn>d<extra><older>[SEP]e<|endoftext|>"):
        ids = plain(text, add_special_tokens=False)["input_ids"]
        assert loaded.encode(text) == ids, text
        assert loaded.encode(text, special=True) == expected(text, add_special_tokens=False)["input_ids"], text
        assert loaded.decode(ids) == expected.decode(ids), text
    if expected.cls_token is None:
        assert loaded.backend.encode("ab").ids == plain("ab")["input_ids"]
    for name in tokenizer_settings.NAMES:
        id = getattr(expected, f"{name}_id")
        if name in loaded.named or (id is not None and id < len(loaded._vocabulary)):
            assert loaded.id_of(name) == id, name
    if expected.eos_token is not None and loaded.id_of("eos_token") is not None:
        assert loaded.end_of_text == expected.eos_token_id


def check(path: Path, transformers: Any) -> bool:
    """Compare; False where lmjax or transformers refuses the folder."""
    try:
        loaded = tokenizer.load_tokenizer(path)
    except UserError as error:
        if "\n" in str(error):
            raise
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            transformers.AutoTokenizer.from_pretrained(path)
        except ValueError:  # it does not read two files without a class
            return False
        assert_equal(loaded, path, transformers)
    loaded.save(path / "saved.json")
    again = tokenizer.load_tokenizer(path / "saved.json")
    assert (again.sha256, again.end_of_text, again.sep) == (loaded.sha256, loaded.end_of_text, loaded.sep)
    return True


MAKERS = [folder_of, bert_folder, llama_folder]


@pytest.mark.slow
def test_the_class_of_every_model_type_is_that_of_transformers() -> None:
    """Every class that transformers knows is followed, reads tokenizer.json as it is, or is warned about."""
    auto = pytest.importorskip("transformers.models.auto.tokenization_auto")
    for model, name in auto.TOKENIZER_MAPPING_NAMES.items():
        if name is None or model not in auto.CONFIG_MAPPING_NAMES:  # a package is missing, or no config.json names it
            continue
        name = name.removesuffix("Fast").replace("MistralCommonBackend", BACKEND)
        assert REGISTERED[model] == name
        real = auto.tokenizer_class_from_name(name)
        rebuilds = "__init__" in vars(real) and name != BACKEND
        name = ALIASES.get(name, name)
        assert rebuilds == (name in CLASSES or name in NOT_FOLLOWED), name
        assert not (name in CLASSES and name in NOT_FOLLOWED)
    wrong = auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    known = {model for model in wrong if REGISTERED.get(model, BACKEND) != BACKEND}
    assert known == OVERRIDES


def compare(make: Any, tmp_path: Path, seeds: range) -> int:
    """Compare folders of these seeds; return how many were compared."""
    transformers = pytest.importorskip("transformers")
    return sum(check(make(tmp_path / str(seed), random.Random(seed)), transformers) for seed in seeds)


@pytest.mark.slow
@pytest.mark.parametrize("make", MAKERS)
def test_ids_text_and_special_tokens_are_those_of_transformers(make: Any, tmp_path: Path) -> None:
    assert compare(make, tmp_path, range(60)) >= 45


# ---- The files ----------------------------------------------------------------------------------------------------


def saved(path: Path, *special: str, **files: Any) -> Path:
    """A folder with a byte tokenizer, special tokens, and JSON files by their names without the ending."""
    path.mkdir()
    backend = tokenizers.Tokenizer.from_str(tokenizer.build_tokenizer(TokenizerConfig("bytes"), lambda: iter([])).json)
    backend.add_special_tokens(list(special))
    backend.save(str(path / "tokenizer.json"))
    for name, value in files.items():
        write(path, f"{name}.json", value)
    return path


DEEPSEEK = "<\uff5cend\u2581of\u2581sentence\uff5c>"


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"eos_token": DEEPSEEK}},
        {"tokenizer_config": {"eos_token": {"__type": "AddedToken", "content": DEEPSEEK, "lstrip": False}}},
        {"special_tokens_map": {"eos_token": DEEPSEEK}},
        {"special_tokens_map": {"eos_token": {"content": DEEPSEEK}}, "tokenizer_config": {"eos_token": "</s>"}},
    ],
)
def test_eos_token_ends_a_document_wherever_it_is_named(files: dict[str, Any], tmp_path: Path) -> None:
    """It is recorded in the tokenizer.json of a run; a usual name is the fallback, and other files do not change."""
    folder = saved(tmp_path / "in", DEEPSEEK, **files)
    loaded = tokenizer.load_tokenizer(folder)
    assert loaded.end_of_text == 257
    assert loaded.end_description == f"{DEEPSEEK!r} (id 257) ends each document"
    loaded.save(tmp_path / "tokenizer.json")
    again = tokenizer.load_tokenizer(tmp_path / "tokenizer.json")
    assert (again.end_of_text, again.sha256) == (257, loaded.sha256)
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("ab").ids == [97, 98]
    alone = tokenizer.load_tokenizer(folder / "tokenizer.json")
    assert alone.end_of_text == 256
    assert alone.json == (folder / "tokenizer.json").read_text()
    assert tokenizer.file_identity(folder)[-1] == ["settings", loaded.sha256]


def test_a_tokenizer_without_an_end_says_so() -> None:
    loaded = Tokenizer(tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")))
    assert loaded.end_of_text is None
    assert loaded.end_description.startswith("no token ends a document")


def test_settings_that_change_nothing_keep_the_hash(tmp_path: Path) -> None:
    config = {"eos_token": END_OF_TEXT, "model_max_length": 5, "tokenizer_class": "GPT2Tokenizer", "chat_template": "x"}
    write(tmp_path, "tokenizer_config.json", config)
    built = tokenizer.build_tokenizer(TokenizerConfig("bpe", 300), lambda: iter([CORPUS]))
    built.save(tmp_path / "tokenizer.json")
    assert tokenizer.load_tokenizer(tmp_path).sha256 == built.sha256
    assert len(tokenizer.file_identity(tmp_path)) == 1


def test_a_class_splits_text_whatever_tokenizer_json_says(tmp_path: Path) -> None:
    """Qwen2 makes a word of each digit and of line breaks, and composes characters; GPT-2 does not."""
    built = tokenizer.build_tokenizer(TokenizerConfig("bpe", 300), lambda: iter(["1999 x\n\ny " * 50]))
    built.save(tmp_path / "tokenizer.json")
    text = "1999 x\n\ny e\u0301"
    words = {}
    for name in ("GPT2Tokenizer", "Qwen2TokenizerFast"):
        write(tmp_path, "tokenizer_config.json", {"tokenizer_class": name})
        loaded = tokenizer.load_tokenizer(tmp_path)
        words[name] = [loaded.decode([id]) for id in loaded.encode(text)]
        assert loaded.decode(loaded.encode("e\u0301")) == ("e\u0301" if name == "GPT2Tokenizer" else "\u00e9")
    assert words["GPT2Tokenizer"][:2] == ["1999", " x"]
    assert words["Qwen2TokenizerFast"][:5] == ["1", "9", "9", "9", " x"]


@pytest.mark.parametrize(
    ("chosen", "lower"), [({}, True), ({"do_lower_case": False}, False), ({"do_lower_case": True}, True)]
)
def test_do_lower_case_counts_whatever_the_vocabulary_has(chosen: dict[str, Any], lower: bool, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Paris", "paris"]))
    write(tmp_path, "tokenizer_config.json", chosen | {"tokenizer_class": "BertTokenizer"})
    loaded = tokenizer.load_tokenizer(tmp_path)
    assert [loaded.token(id) for id in loaded.encode("Paris")] == ["paris" if lower else "Paris"]


def test_the_special_tokens_of_a_masked_model_are_those_that_are_named(tmp_path: Path) -> None:
    config = {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>", "pad_token": "<pad>", "bos_token": "<s>"}
    folder = saved(tmp_path / "in", "<s>", "</s>", "<mask>", "<pad>", tokenizer_config=config)
    loaded = tokenizer.load_tokenizer(folder)
    loaded.save(tmp_path / "tokenizer.json")
    for one in (loaded, tokenizer.load_tokenizer(tmp_path / "tokenizer.json")):
        assert (one.cls, one.sep, one.mask, one.pad) == (257, 258, 259, 260)
    assert loaded.id_of("bos_token") == 257
    assert loaded.id_of("eos_token") is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": {"fix_mistral_regex": True}}, "fix_mistral_regex=True is not supported"),
        ({"tokenizer_config": {"auto_map": {"AutoTokenizer": ["a.B", None]}}}, "auto_map=.* it names code"),
        ({"tokenizer_config": {"eos_token": 5}}, "eos_token=5 is not a token"),
        ({"tokenizer_config": {"do_lower_case": "no"}}, "do_lower_case='no' is neither true nor false"),
        ({"tokenizer_config": {"added_tokens_decoder": [1]}}, "added_tokens_decoder is not an object"),
        ({"tokenizer_config": {"added_tokens_decoder": {"5": "x"}}}, "a token that is not an object"),
        ({"tokenizer_config": {"extra_special_tokens": 5}}, "neither a list nor an object"),
        ({"tokenizer_config": {"tokenizer_class": "BertTokenizer"}}, "it uses WordPiece, and the vocabulary is BPE"),
        ({"tokenizer_config": [1]}, "is not an object in JSON"),
        ({"added_tokens": {"x": "y"}}, "is not an object from tokens to ids"),
    ],
)
def test_a_setting_that_is_not_followed_is_one_line(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        tokenizer.load_tokenizer(saved(tmp_path / "in", **files))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "class_name"),
    [("vocab.txt", "EsmTokenizer"), ("vocab.json", "RobertaTokenizer"), ("vocab.json", "PreTrainedTokenizerFast")],
)
def test_vocabulary_files_of_other_classes_are_refused(name: str, class_name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    (tmp_path / "merges.txt").touch()
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": class_name})
    with pytest.raises(
        UserError, match=f"tokenizer_class={class_name.removesuffix('Fast')} is not supported with vocab"
    ):
        tokenizer.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "class_name"), [("t5", None), ("llama", "AlbertTokenizer"), ("gemma2", "RobertaTokenizerFast")]
)
def test_a_class_with_rules_of_its_own_is_named_once(
    model_type: str, class_name: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"tokenizer_class": class_name} if class_name else {}
    folder = saved(tmp_path / "in", tokenizer_config=config, config={"model_type": model_type})
    alone = tokenizer.load_tokenizer(folder / "tokenizer.json")
    assert capsys.readouterr().err == ""
    for _ in range(2):
        assert tokenizer.load_tokenizer(folder).encode("a b") == alone.encode("a b")
    (line,) = capsys.readouterr().err.splitlines()
    name = (class_name or "T5Tokenizer").removesuffix("Fast")
    assert f"transformers builds a {name} by rules of its own" in line


@pytest.mark.parametrize("class_name", ["PreTrainedTokenizerFast", "TokenizersBackend", "NoSuchTokenizer"])
def test_a_class_that_reads_tokenizer_json_as_it_is_is_silent(
    class_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.load_tokenizer(saved(tmp_path / "in", tokenizer_config={"tokenizer_class": class_name}))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("model_type", ["qwen2", "bart", "mistral"])
def test_two_files_without_a_class_are_those_of_the_model(model_type: str, tmp_path: Path) -> None:
    """Qwen2 makes a word of each digit; the others are no readers of such files, or not followed."""
    built = tokenizer.build_tokenizer(TokenizerConfig("bpe", 300), lambda: iter(["1999 x\n\ny " * 50]))
    model = json.loads(built.json)["model"]
    write(tmp_path, "vocab.json", model["vocab"])
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]), "utf-8")
    write(tmp_path, "config.json", {"model_type": model_type})
    if model_type == "qwen2":
        assert len(tokenizer.load_tokenizer(tmp_path).encode("1999")) == 4 > len(built.encode("1999"))
    else:
        with pytest.raises(UserError, match="is not supported with vocab"):
            tokenizer.load_tokenizer(tmp_path)


def test_special_tokens_in_a_text_are_text_unless_they_are_asked_for() -> None:
    built = tokenizer.build_tokenizer(TokenizerConfig("bytes"), lambda: iter([]))
    assert built.encode(f"a{END_OF_TEXT}") == list(b"a<|endoftext|>")
    assert built.encode(f"a{END_OF_TEXT}", special=True) == [97, 256]
    assert built.encode(f"a{END_OF_TEXT}") == list(b"a<|endoftext|>")  # also after the other one


@pytest.mark.parametrize(
    ("change", "lossless"),
    [
        ({}, True),
        ({"normalizer": {"type": "NFC"}}, False),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
            False,
        ),
        ({"pre_tokenizer": None}, False),
    ],
)
def test_what_loses_no_text_is_known(change: dict[str, Any], lossless: bool) -> None:
    tree = json.loads(tokenizer.build_tokenizer(TokenizerConfig("bytes"), lambda: iter([])).json)
    made = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(tree | change)))
    assert made.lossless == lossless
