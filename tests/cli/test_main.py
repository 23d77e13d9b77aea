"""The doors: every mistake is one clear line and status 2, help teaches, nothing heavy is imported to say so."""

import argparse
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lmjax.cli import actions, models
from lmjax.cli import main as cli
from lmjax.config import Config, UserError, presets
from lmjax.config.codec import from_json, to_json
from lmjax.evaluation.settings import Settings
from lmjax.inference.sampling import Sampling
from lmjax.system import runtime
from lmjax.tasks import catalog
from tests import ROOT

Door = Callable[..., tuple[int, str, str]]


@pytest.fixture
def door(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Door:
    """train.py in this process: exit status, standard output and error."""
    monkeypatch.setattr(runtime, "prepare", lambda config=None: None)  # JAX is imported already

    def call(*words: str, main: Callable = cli.train_main) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(words)
        return left.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def saved(tiny: Config, tmp_path: Path) -> str:
    """The tiny configuration as a file."""
    path = tmp_path / "config.json"
    path.write_text(to_json(tiny))
    return str(path)


def test_print_config_is_a_configuration_that_can_be_read_back(door: Door) -> None:
    status, printed, _ = door("shakespeare_char", "model.layers=3", "--print-config")
    assert status == 0
    config = from_json(printed, Config)
    assert config.model.layers == 3
    assert config.name == "shakespeare_char"


def test_help_names_every_preset_and_every_group_of_keys(door: Door) -> None:
    status, printed, _ = door("--help")
    assert status == 0
    for word in (*presets.names(), "data.*", "schedule.*", "--resume", "data.files=[shakespeare.txt]"):
        assert word in printed


def test_without_a_command_the_commands_are_listed(door: Door) -> None:
    status, _, error = door(main=cli.main)
    assert status == 2
    assert "audit" in error
    assert "lmjax COMMAND --help" in error


def test_a_batch_that_is_no_multiple_of_the_microbatch_is_shown(door: Door) -> None:
    _, printed, _ = door("plan", "quickstart", "--no-measure", "batch.microbatch=7", main=cli.main)
    assert "1,792 not 2,048, 4,480 not 4,096: a batch is a multiple of batch.microbatch=7" in " ".join(printed.split())


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_can_be_planned(name: str, door: Door) -> None:
    status, printed, _ = door("plan", name, "--no-measure", main=cli.main)
    assert status == 0
    assert "a batch is a multiple of" not in printed
    for word in ("Parameters", "Milestones", "warm-up ends", "last update", "iB"):
        assert word in printed
    assert presets.load(name).name == name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quikstart"], "unknown config 'quikstart'; did you mean 'quickstart'?"),
        (["model.layer=3"], "unknown key 'model.layer'; did you mean 'model.layers'?"),
        (["model.layers=three"], "model.layers: expected an integer"),
        (["quickstart", "llama_1b"], "one configuration at a time"),
        (["nowhere/config.py"], "no such config file: nowhere/config.py"),
        (["--resume", "nowhere"], "nowhere is not a run"),
        (["--allow-change", "seed"], "--allow-change needs --resume DIR"),
        (["--resume", "a", "--run-dir", "b"], "leave out --run-dir"),
        (["seed=-1"], "seed = -1 must not be negative"),
        (["extensions=[missing.py]"], "missing.py does not exist; give the path of a Python file"),
        (["--run-dir", "gs://bucket/x"], "--run-dir gs://bucket/x is a remote address"),
        (["data.files=[missing.txt]"], "missing.txt"),
        (["data.tokenizer.kind=file", "data.tokenizer.path=missing.json"], "missing.json"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    words: list[str], message: str, door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, error = door(*words)
    assert status == 2
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs" / "quickstart").exists()


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        (b"", [], "empty"),
        (b"\n\n\n", [], "empty"),
        (b"caf\xe9 latin-1\n\nsecond paragraph\n", [], "UTF-8"),
        (b"one two\n\nthree four\n\nfive\n", ["data.validation_fraction=0.5"], "block is longer than the corpus"),
    ],
)
def test_text_that_cannot_be_trained_on_is_refused(
    content: bytes, overrides: list[str], message: str, door: Door, saved: str, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    words = [saved, f"data.files=[{text}]", f"data.cache={tmp_path / 'cache'}", "model.context=64", *overrides]
    status, _, error = door(*words, "batch.tokens=((0, 256),)", "--run-dir", str(tmp_path / "run"))
    assert status == 2
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_larger_than_the_model_is_refused(door: Door, saved: str, tmp_path: Path) -> None:
    status, _, error = door(saved, "model.vocab_size=200", "--run-dir", str(tmp_path / "run"))
    assert status == 2
    assert "smaller than the tokenizer's 257" in error


def test_a_run_directory_that_cannot_be_written_is_refused(door: Door, saved: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    status, _, error = door(saved, "--run-dir", str(tmp_path / "file" / "run"))
    assert status == 2
    assert "cannot write to" in error
    assert "--run-dir" in error
    assert (tmp_path / "file").read_text() == "not a folder"
    status, _, error = door(saved, "--run-dir", "/proc/lmjax")
    assert status == 2
    assert "cannot write to /proc/lmjax" in error


@pytest.mark.slow
def test_from_training_to_text(door: Door, saved: str, tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    status, printed, _ = door(saved, "train.baselines=false", "--run-dir", run_dir)
    assert status == 0
    assert "finished: 12 updates" in printed
    status, _, error = door(saved, "--run-dir", run_dir)
    assert status == 2
    assert f"--resume {run_dir}" in error
    status, printed, _ = door("generate", run_dir, "--prompt", "the", "--max-tokens", "5", main=cli.main)
    assert status == 0
    assert printed.startswith("the")
    status, printed, _ = door("plot", run_dir, run_dir, "--out", str(tmp_path / "both"), main=cli.main)
    assert status == 0
    assert all(Path(line).is_file() for line in printed.split())
    status, _, error = door("generate", str(tmp_path / "both"), "--prompt", "x", main=cli.main)
    assert status == 2
    assert "it is neither a run nor a Hugging Face model" in error


def test_prompts_come_from_options_the_standard_input_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("third é\n\n fourth\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"second\nline\n"), encoding="ascii"))
    options = argparse.Namespace(prompt=["first", "-"], prompt_file=str(path))
    assert models._prompts(options) == ["first", "second\nline", "third é", " fourth"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    with pytest.raises(UserError, match="the standard input is not UTF-8"):
        models._prompts(options)


def test_help_shows_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["generate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, value in (("temperature", 0.8), ("top-p", 0.95), ("top-k", 0), ("max-tokens", 200), ("min-p", "0.0")):
        assert re.search(rf"--{name} [A-Z] [^-]*\(default: {value}\)", text), name
    assert "None" not in text
    assert "False" not in text


# ---- Trained models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "nowhere", "--prompt", "x"], "cannot open nowhere: there is no such file or folder"),
        (["generate", "nowhere", "--prompt", "x", "--top-p", "2"], "top_p in (0, 1]"),
        (["generate", "nowhere", "--prompt", "x", "--stop", ""], "an empty text would end every continuation"),
        (["generate", "nowhere", "--prompt", "x", "--checkpoint", "last"], "give newest, best, or the number"),
        (["generate", ".", "--prompt", "x"], "it is neither a run nor a Hugging Face model"),
        (["evaluate", "nowhere", "--tasks", "antonyms"], "cannot open nowhere: there is no such file or folder"),
        (["evaluate", "nowhere", "--tasks", "antonym"], "did you mean 'antonyms'?"),
        (["evaluate", "nowhere", "--tasks", "antonyms", "--shots", "one"], "give numbers of examples, as in 0,1,5"),
        (["evaluate", "nowhere", "--tasks", "antonyms", "--shots", "1,1"], "numbers of examples must be distinct"),
        (["evaluate", "nowhere", "--tasks", "antonyms", "--limit", "-1"], "--limit -1: give an integer from 0 to"),
        (["evaluate", "nowhere", "--tasks", "antonyms", "--show", "-1"], "--show -1: give an integer from 0 to"),
        (["evaluate", "nowhere"], "evaluate needs a MODEL and --tasks A,B"),
        (["evaluate", "--explain", "antonym"], "did you mean 'antonyms'?"),
        (["generate", "nowhere", "--prompt", "x", "--temperature", "nan"], "--temperature nan: give a finite number"),
        (["generate", "nowhere", "--prompt", "x", "--temperature", "inf"], "--temperature inf: give a finite number"),
        (["generate", "nowhere", "--prompt", "x", "--top-k", "99999999999"], "--top-k 99999999999: give an integer"),
        (["generate", "nowhere", "--prompt", "caf\udce9"], "--prompt: the text is not UTF-8: byte 0xe9 at character 3"),
        (["generate", "nowhere"], "--prompt TEXT is missing: give --prompt TEXT, --prompt - (the standard input)"),
        (["generate", "nowhere", "--prompt-file", "none.txt"], "--prompt-file none.txt cannot be read as UTF-8 text"),
        (["generate", "nowhere", "--prompt-file", os.devnull], f"--prompt-file {os.devnull} has no line with a prompt"),
        (["generate", "nowhere", "--prompt", "a", "--stop", "\udce9"], "--stop: the text is not UTF-8"),
        (["evaluate", "nowhere", "--tasks", "antonyms", "--samples"], "--samples are written next to --json FILE"),
        (["evaluate", "nowhere", "--tasks", "antonyms", "--json", "no/where"], "there is no folder no"),
        (["compare", "a.json", "b.json"], "cannot read the results 'a.json'"),
        (["export", "nowhere", "out"], "cannot open nowhere: there is no such file or folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_with_a_model_is_one_line_and_status_2(
    words: list[str], message: str, door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, printed, error = door(*words, main=cli.main)
    assert (status, printed) == (2, "")
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_words_become_the_arguments_of_the_commands(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    called: dict[str, tuple[tuple, dict]] = {}

    def noting(name: str) -> Callable[..., int]:
        def note(*given: object, **named: object) -> int:
            called[name] = given, named
            return 3

        return note

    for name in ("generate_texts", "evaluate_model", "compare_evaluations", "export_run"):
        monkeypatch.setattr(actions, name, noting(name))
    model, a, b = Path("model"), Path("a"), Path("b")
    for line in (
        "generate model --prompt x --prompt y --max-tokens 5 --temperature 0 --top-k 3 --top-p .5 --min-p .1 --seed 7 "
        "--repetition-penalty 1.5 --stop . --stop ! --past-end --special-tokens --checkpoint best "
        "--dtype bfloat16",
        "evaluate model --tasks antonyms,plural --shots 0,1,5 --shot-seeds 3 --limit 9 --balanced --describe "
        "--mutual-info --calibrate --show 2 --json a --samples --plot b --no-cache --checkpoint 12 "
        "--first-token end --window 7 --max-tokens 9 --allow-hub",
        "compare a b --plot a",
        "export model a --checkpoint 12",
    ):
        assert door(*line.split(), main=cli.main)[0] == 3
    sampling = {"max_tokens": 5, "temperature": 0, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.5}
    sampling |= {"stop": (".", "!"), "past_end": True, "seed": 7}
    Sampling(**sampling)
    own = {"checkpoint": "best", "dtype": "bfloat16", "special_tokens": True}
    assert called["generate_texts"] == ((model, ["x", "y"]), sampling | own)
    settings = {"shots": (0, 1, 5), "seeds": 3, "limit": 9}
    settings |= dict.fromkeys(("balanced", "described", "mutual_info", "calibrated"), True)
    settings |= {"first_token": "end", "window": 7, "max_tokens": 9}
    Settings(**settings)
    given, named = called["evaluate_model"]
    assert given == (model, ["antonyms", "plural"])
    written = {"json": a, "samples": True, "plot": b, "show": 2, "cached": False, "allow_hub": True}
    assert named == {"settings": settings, "checkpoint": "12", "dtype": "float32"} | written
    assert called["compare_evaluations"] == (([a, b],), {"plot": a})
    assert called["export_run"] == ((model, a), {"checkpoint": "12"})


@pytest.mark.parametrize("name", ["p.png", "p.PDF"])
def test_a_plot_of_several_pictures_needs_a_folder(door: Door, tmp_path: Path, name: str) -> None:
    status, _, error = door("plot", str(tmp_path), "--out", str(tmp_path / name), main=cli.main)
    assert (status, error.count("\n")) == (2, 1)
    assert f"--out {tmp_path / name}: give a folder, because several pictures are drawn" in error
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_what_a_new_tokenizer_leaves_out_is_listed(door: Door, saved: str, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.jsonl").write_text('{"text": "a cat"}\n' * 9 + "{\n[]\n")
    (tmp_path / "d/b.bin").touch()
    words = ["tokenizer", "train", saved, f"data.files=[{tmp_path}/d]", "data.on_bad_record=skip", "--out"]
    for kind in ("bpe", "wordpiece"):  # of which the second reads the text twice
        choice = [f"data.tokenizer.kind={kind}", "data.tokenizer.vocab_size=300"]
        status, printed, _ = door(*words, str(tmp_path / "t.json"), *choice, main=cli.main)
        assert status == 0
        assert f"left out 2 bad records, first '{tmp_path}/d/a.jsonl', line 10 is not JSON" in printed
        assert f"left out 1 of files with an unknown ending: {tmp_path}/d/b.bin" in printed
    for path in (tmp_path, tmp_path / "none/t.json"):
        status, _, error = door(*words, str(path), main=cli.main)
        assert (status, error.count("\n")) == (2, 1)
        assert f"cannot write --out {path}: give the name of a file" in error


@pytest.mark.slow
def test_a_tokenizer_is_trained_and_used(door: Door, saved: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    choice = ["data.tokenizer.kind=bpe", "data.tokenizer.vocab_size=300"]
    status, printed, _ = door("tokenizer", "train", saved, *choice, "--out", str(path), main=cli.main)
    assert status == 0
    assert "sha256" in printed
    status, printed, error = door(
        saved, "data.tokenizer.kind=file", f"data.tokenizer.path={path}", "--run-dir", str(tmp_path / "run")
    )
    assert status == 0, error
    assert "in the vocabulary" in printed


@pytest.mark.parametrize(
    ("main", "words"),
    [
        ("train_main", ["--help"]),
        ("train_main", ["model.layer=3"]),
        ("train_main", ["--print-config"]),
        ("main", ["--help"]),
        ("main", ["evaluate", "--help"]),
        ("main", ["explain", "schedule.peak"]),
    ],
    ids=str,
)
def test_the_answer_comes_before_anything_heavy_is_imported(main: str, words: list[str]) -> None:
    script = f"""
import sys
from lmjax.cli import main
try:
    main.{main}({words!r})
finally:
    assert not {{"jax", "numpy", "datasets", "flax", "matplotlib", "rich", "pyarrow"}} & set(sys.modules)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == (2 if "=" in words[0] else 0), done.stderr
    assert time.monotonic() - begun < 30  # a hang, not a measurement
    if words == ["evaluate", "--help"]:
        assert all(name in done.stdout for name in catalog.names())


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("lmjax.run.curves", {"jax", "flax", "optax", "orbax", "tokenizers", "datasets", "pyarrow"}),
        ("lmjax.run.launch", {"matplotlib", "datasets", "pyarrow", "sacrebleu", "torch", "transformers", "tensorflow"}),
        (
            "lmjax.cli.actions",
            {"matplotlib", "datasets", "pyarrow", "sacrebleu", "torch", "transformers", "tensorflow"},
        ),
    ],
)
def test_a_command_imports_only_what_it_uses(module: str, absent: set[str]) -> None:
    script = f"""
import importlib, sys
from lmjax.system import runtime
runtime.prepare()
importlib.import_module({module!r})
print(*{absent!r} & set(sys.modules))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr
