"""Configurations by name, by path, and as JSON."""

from pathlib import Path

import pytest

from lmjax.config import Config, ScheduleConfig, UserError, presets
from lmjax.config.checks import check
from lmjax.config.codec import from_json, to_json
from lmjax.models import registry

SOURCE = '''
from lmjax.config import Config

def _helper():
    return 1

def mine() -> Config:
    """A test."""
    return Config(name="mine", seed=_helper())

def other() -> Config:
    return Config(name="other")

def wrong():
    return 3
'''


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_sound_and_documented(name: str) -> None:
    config = presets.load(name)
    check(config)
    registry.check(config.model)
    assert presets.names()[name][1].strip()
    assert from_json(to_json(config), Config) == config


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2_124m", 124_439_808),
        ("gpt2_350m", 354_823_168),
        ("gpt2_774m", 774_030_080),
        ("gpt2_1558m", 1_557_611_200),
        ("llama_1b", 1_235_814_400),
        ("llama_7b", 6_738_415_616),
        ("bert_base", 110_106_428),
        ("bert_large", 336_226_108),
    ],
)
def test_published_models_have_their_published_size(name: str, count: int) -> None:
    assert registry.parameters(presets.load(name).model)["total"] == count


@pytest.mark.parametrize(
    ("name", "billions"),
    [("125m", 0.125), ("350m", 0.356), ("760m", 0.760), ("1300m", 1.316), ("2700m", 2.65), ("6700m", 6.66),
     ("13b", 12.85), ("175b", 174.6)],
)  # fmt: skip
def test_gpt3_has_the_sizes_of_its_table(name: str, billions: float) -> None:
    total = registry.parameters(presets.load(f"gpt3_{name}").model)["total"]
    assert total / 1e9 == pytest.approx(billions, rel=0.01)  # the table's column n_params, with its rounding


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    assert presets.load(str(path)) == Config(name="mine", seed=1)
    assert presets.load(f"{path}:other").name == "other"
    with pytest.raises(UserError, match="no function 'nothing'"):
        presets.load(f"{path}:nothing")
    with pytest.raises(UserError, match="returned int, not a Config"):
        presets.load(f"{path}:wrong")


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ("seed=3", True),
        ("runtime.updates_at_once=1", True),
        ("train.log_every=5", True),
        ("checkpoint.every=7", True),
        ("data.files=[mine.txt]", False),
        ("train.updates=3", False),
        ("model.layers=1", False),
    ],
)
def test_expected_results_are_those_of_the_unchanged_preset(change: str, kept: bool, tmp_path: Path) -> None:
    """A change of data, model or training has other results; a seed or a log has not."""
    expected = presets.load("speedrun_char").train.expect
    assert expected
    changed = presets.load("speedrun_char", [change])
    assert changed.train.expect == (expected if kept else ())
    (tmp_path / "config.json").write_text(to_json(presets.load("speedrun_char")))
    assert presets.load(str(tmp_path / "config.json"), [change]).train.expect == changed.train.expect
    own = presets.load("speedrun_char", [change, "train.expect=[[val_loss,1,2]]"])
    assert own.train.expect == (("val_loss", 1.0, 2.0),)


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("gpt2", ["gpt2_124m", "gpt2_350m", "gpt2_774m", "gpt2_1558m"]),
        ("gpt2-medium", ["gpt2_124m", "gpt2_350m", "gpt2_774m", "gpt2_1558m"]),
        ("llama", ["llama_1b", "llama_7b"]),
        ("GPT2-124M", ["gpt2_124m"]),
        ("quikstart", ["quickstart"]),
        ("tinystories", []),
    ],
)
def test_an_unknown_name_is_answered_with_similar_ones(name: str, listed: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        presets.load(name)
    assert [preset for preset in presets.names() if f"'{preset}'" in str(caught.value)] == sorted(
        listed, key=list(presets.names()).index
    )
    assert listed or str(caught.value).endswith("; `lmjax train --help` lists them")


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        (["train.epochs=2"], (0, 0, 2.0)),
        (["train.tokens=1e6"], (0, 1_000_000, 0.0)),
        (["train.epochs=2", "train.epochs=0"], (600, 0, 0.0)),
        (["train.updates=0", "train.epochs=.5"], (0, 0, 0.5)),
        (["train.updates=5", "train.tokens=64"], (5, 64, 0.0)),
        (["train.log_every=2"], (600, 0, 0.0)),
    ],
)
def test_a_length_of_the_run_replaces_that_of_the_preset(changes: list[str], length: tuple) -> None:
    for train in (
        presets.load("quickstart", changes).train,
        presets.with_changes(presets.load("quickstart"), changes).train,
    ):
        assert (train.updates, train.tokens, train.epochs) == length
        assert type(train.epochs) is float  # as config.json has it


@pytest.mark.parametrize("other", ["train.updates=5", "train.tokens=64"])
def test_two_lengths_of_a_run_are_refused(other: str) -> None:
    with pytest.raises(UserError, match=r"train.epochs = 2 and train.\w+ = \d+ are both set; set one of them to 0"):
        check(presets.load("quickstart", ["train.epochs=2", other]))


def test_a_saved_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(to_json(Config(seed=7)))
    assert presets.load(str(path)).seed == 7
    with pytest.raises(UserError, match="no such config file"):
        presets.load(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"seed": ' + b"9" * 5000 + b"}", "an integer of 5000 digits"),
        (b"[" * 1_000_000, "more than 100 levels"),
        (b'{"a":' * 1000 + b"1" + b"}" * 1000, "more than 100 levels"),
        ('{"seed": 1}'.encode("utf-16"), "save it as UTF-8"),
        (b'{"name": "caf\xe9"}', "is not UTF-8"),
        (b'{"schedule": {"peak": 1' + b"0" * 400 + b"}}", "schedule.peak: expected a number, got 1e400 .about."),
        (b'{"seed": 1e30}', "seed: expected an integer"),
        (b'{"seed": true}', "seed: expected an integer, got True"),
        (b'{"name": "a\\nb"}', "name = .* must be a folder name"),
        (b"", "is not JSON"),
        (b"null", "configuration: expected an object, got None"),
        (b'{"model": {"family": {}}}', "model.family: {} is unknown"),
        (b'{"model": {"family": 1}}', "model.family: 1 is unknown"),
        (b'{"model": {"dtype": []}}', r"model.dtype: \[\] is not one of float32, bfloat16"),
        (b'{"extensions": [3]}', "extensions: expected text, got 3"),
    ],
)
def test_a_damaged_or_hostile_file_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    for read in (lambda: check(presets.load(str(path))), lambda: presets.read(path)):
        with pytest.raises(UserError, match=message) as caught:
            read()
        assert str(caught.value).isprintable()


def test_integers_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('\ufeff{"seed": 1e3, "schedule": {"peak": 1}}', encoding="utf-8")
    assert presets.load(str(path)) == Config(seed=1000, schedule=ScheduleConfig(peak=1.0))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("notes.txt", "hello", "it is neither a .py file nor a .json file"),
        ("mine.py", "def mine(:", "mine.py, line 1: SyntaxError"),
        ("mine.py", "import sys\nsys.exit()", "mine.py, line 2: SystemExit"),
        ("mine.py", "def mine():\n    raise SystemExit", r"mine.py: mine\(\): SystemExit"),
        ("mine.py", "\0", "mine.py.*(SyntaxError|ValueError)"),
        ("mine.py", "", "no function 'mine' that returns a Config"),
        ("folder/", "", "it is neither a .py file nor a .json file"),
        ("absent/file", None, "there is no such file"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_line(name: str, text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    elif text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        presets.load(str(path) + "/" * name.endswith("/"))
    assert str(caught.value).isprintable()


def test_a_configuration_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "large.json").write_bytes(b" " * 17_000_000)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    for name, message in (
        ("folder.json", "no such config file"),
        ("large.json", "larger than"),
        ("a\0.json", "file"),
        ("run", "it is a folder; use .*config.json"),
    ):
        with pytest.raises(UserError, match=message):
            presets.load(str(tmp_path / name))
