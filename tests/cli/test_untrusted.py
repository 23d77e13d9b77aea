"""Commands that read files of others execute nothing, write nothing elsewhere, connect to nothing, and stay small."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.font_manager  # writes its list of fonts, with a process of its own
import pytest

from lmjax.cli import actions
from lmjax.config import Config, RuntimeConfig, TrackConfig
from lmjax.config.codec import apply_overrides, from_json, to_json
from lmjax.run import launch
from tests import ROOT

pytestmark = pytest.mark.slow

MEMORY = 2 << 30
MARK = "import pathlib\npathlib.Path({path!r}).write_text('executed')\n"


class Outcome(NamedTuple):
    status: int
    output: str
    error: str
    #: What the audit hook noted; empty for nothing.
    noted: str


class Place(NamedTuple):
    """Hostile files, and the folders of a command that reads them."""

    inputs: Path
    out: Path
    cache: Path

    def command(self, *words: str | Path) -> Outcome:
        """A command under the audit hook, with its limits checked; the inputs stay as they are."""
        before = tree(self.inputs)
        report = self.out.parent / "report.txt"
        environment = os.environ | {"XDG_CACHE_HOME": str(self.cache), "TMPDIR": str(self.cache)}
        environment |= {"JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {"MPLCONFIGDIR": matplotlib.get_cachedir()}  # matplotlib looks for fonts once
        for name in ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS"):
            environment.pop(name, None)
        watched = [sys.executable, ROOT / "tests" / "cli" / "watched.py", report, self.inputs]
        done = subprocess.run(
            [*watched, f"{self.out},{self.cache}", *words],
            env=environment, cwd=self.out, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        peak, noted = report.read_text().split(" ", 1)
        assert int(peak) < MEMORY
        assert tree(self.inputs) == before
        assert "Traceback" not in done.stderr, done.stderr
        return Outcome(done.returncode, done.stdout, done.stderr, noted)


def tree(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): digest(path) for path in files}


def digest(path: Path) -> str:
    """The sha256 of a file; of a sparse one its size."""
    size = path.stat().st_size
    return hashlib.sha256(path.read_bytes()).hexdigest() if size < 1 << 30 else f"{size} bytes"


@pytest.fixture(scope="module")
def sound(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, its export and a task."""
    folder = tmp_path_factory.mktemp("sound")
    overrides = [
        f"data.files=[{corpus}]", "data.tokenizer.kind=bytes", "model.layers=1", "model.width=16", "model.heads=2",
        "model.context=32", "batch.tokens=((0,256),)", "batch.microbatch=8", "train.updates=12", "checkpoint.every=6",
        "train.baselines=false", "train.sample_tokens=0", f"data.cache={folder / 'tokens'}",
    ]  # fmt: skip
    assert launch.start(apply_overrides(Config(name="sound"), overrides), folder / "run") == 0
    assert actions.export_run(folder / "run", folder / "hf") == 0
    task = {"kind": "choose", "prompt": "{a}", "answer": "{b}", "choices": ["x", "y"], "rows": "rows.jsonl"}
    (folder / "task").mkdir()
    (folder / "task" / "task.json").write_text(json.dumps({"name": "t", **task}))
    (folder / "task" / "rows.jsonl").write_text('{"a": "1", "b": "x"}\n' * 20)
    return folder


@pytest.fixture
def place(sound: Path, tmp_path: Path) -> Place:
    inputs = Path(shutil.copytree(sound, tmp_path / "inputs"))
    (inputs / "run" / "config.sha256").unlink()  # whoever forges a configuration can delete its hash
    for name in ("out", "cache"):
        (tmp_path / name).mkdir()
    return Place(inputs, tmp_path / "out", tmp_path / "cache")


READING: dict[str, Callable[[Path], list[str | Path]]] = {
    "audit": lambda run: ["audit", run],
    "replay": lambda run: ["audit", run, "--replay", "8:10"],
    "generate": lambda run: ["generate", run, "--prompt", "the cat", "--max-tokens", "3"],
    "evaluate": lambda run: ["evaluate", run, "--tasks", run.parent / "task", "--limit", "2"],
    "export": lambda run: ["export", run, "exported"],
    "plot": lambda run: ["plot", run, "--out", "plots"],
    "report": lambda run: ["report", run, "--out", "report.html"],
    "plan": lambda run: ["plan", run / "config.json", "--no-measure"],
}


def change(run: Path, edit: Callable[[Config], Config]) -> None:
    config = from_json((run / "config.json").read_text(), Config)
    (run / "config.json").write_text(to_json(edit(config)))


@pytest.mark.parametrize("name", READING)
def test_settings_of_a_run_lead_nowhere(name: str, place: Place) -> None:
    run, elsewhere = place.inputs / "run", place.out.parent / "elsewhere"
    runtime = RuntimeConfig(
        compilation_cache=str(elsewhere / "programs"),
        xla_flags=(f"--xla_dump_to={elsewhere / 'dump'}",),
        gpu_flags=(f"--xla_gpu_cuda_data_dir={elsewhere}",),
        host_devices=3,
        allocator="keep",
    )
    change(run, lambda c: replace(c, runtime=runtime, track=TrackConfig(True, "project"), init_from=str(elsewhere)))
    change(run, lambda c: replace(c, data=replace(c.data, cache=str(elsewhere / "tokens"))))
    outcome = place.command(*READING[name](run))
    assert (outcome.noted, outcome.status) == ("", 0), outcome.error
    assert not elsewhere.exists()
    if name in ("audit", "plan"):
        shown = outcome.output + outcome.error
        assert "ignored in " in shown
        assert f"runtime.compilation_cache={elsewhere / 'programs'}" in " ".join(shown.split())


@pytest.mark.parametrize("name", READING)
def test_code_of_a_run_is_not_executed(name: str, place: Place) -> None:
    run, mark = place.inputs / "run", place.out / "executed.txt"
    code = run / "evil.py"
    code.write_text(MARK.format(path=str(mark)))
    digest = hashlib.sha256(code.read_bytes()).hexdigest()
    change(run, lambda c: replace(c, extensions=(f"{code}#sha256={digest}",)))
    for folder in (run, run / "extensions", place.out):  # what Python would import by name
        folder.mkdir(exist_ok=True)
        for module in ("sitecustomize.py", "optax.py"):
            if folder != place.out:
                (folder / module).write_text(code.read_text())
    outcome = place.command(*READING[name](run))
    assert outcome.noted == ""
    assert not mark.exists()
    if name in ("plot", "report"):  # they read records only
        assert outcome.status == 0, outcome.error
    else:
        assert outcome.status == 2
        assert "--allow-extensions" in outcome.error
        assert outcome.error.count("\n") == 1


def test_a_forged_model_is_refused_before_it_is_built(place: Place) -> None:
    change(place.inputs / "run", lambda c: replace(c, model=replace(c.model, key_heads=2**31 - 1)))
    outcome = place.command(*READING["generate"](place.inputs / "run"))
    assert (outcome.noted, outcome.status) == ("", 2)
    assert "model.heads=2 is not a multiple of model.key_heads=2147483647" in outcome.error


@pytest.mark.parametrize("source", ["hub:owner/name", "hub:/etc", "hub:../inputs"])
def test_an_audit_downloads_nothing(source: str, place: Place) -> None:
    change(place.inputs / "run", lambda c: replace(c, data=replace(c.data, files=(), source=source, cache="")))
    outcome = place.command("audit", place.inputs / "run")
    assert outcome.noted == ""
    assert outcome.status in (1, 2)


# ---- Content --------------------------------------------------------------------------------------------------------


def deep(path: Path) -> None:
    path.write_text('{"a":' * 1_000_000 + "1" + "}" * 1_000_000)


def brackets(path: Path) -> None:
    path.write_text("[" * 10_000_000)


def digits(path: Path) -> None:
    path.write_text('{"seed": ' + "9" * 9_000_000 + "}")


def one_line(path: Path) -> None:
    path.write_text('{"a": "' + "x" * 10_000_000 + '"}\n')


def many(path: Path) -> None:
    path.write_text('{"a": 1}\n' * 1_000_000)


def utf_16(path: Path) -> None:
    path.write_bytes(path.read_text(errors="replace").encode("utf-16"))


def noise(path: Path) -> None:
    path.write_bytes(hashlib.shake_256(b"noise").digest(10_000_000))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def pickled(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"cos\nsystem\n(S'touch executed.txt'\ntR.")


HOSTILE = (deep, brackets, digits, one_line, many, utf_16, noise, folder, endless, pickled)
RUN_FILES = (
    ("config.json", "plan"),
    ("config.json", "generate"),
    ("journal.jsonl", "audit"),
    ("metrics.jsonl", "plot"),
    ("tokenizer.json", "generate"),
    ("checkpoints/12/manifest.json", "export"),
    ("checkpoints/12/meta.json", "audit"),
)
OTHER_FILES = (
    ("hf/config.json", "generate hf --prompt a"),
    ("hf/model.safetensors", "generate hf --prompt a"),
    ("hf/tokenizer.json", "export hf exported"),
    ("task/task.json", "evaluate run --tasks task"),
    ("task/rows.jsonl", "evaluate run --tasks task"),
)


def some(files: tuple[tuple[str, str], ...]) -> list[Any]:
    """Every file with every content; two or three contents of a file are in the slow tier."""
    return [
        pytest.param(
            *(file, words, write),
            id=f"{file}-{words.split()[0]}-{write.__name__}",
            marks=() if (row + column) % 4 == 0 else pytest.mark.exhaustive,
        )
        for row, (file, words) in enumerate(files)
        for column, write in enumerate(HOSTILE)
    ]


@pytest.mark.parametrize(("file", "name", "write"), some(RUN_FILES))
def test_hostile_content_of_a_run_is_one_line(file: str, name: str, write: Any, place: Place) -> None:
    write(place.inputs / "run" / file)
    check_refused(place.command(*READING[name](place.inputs / "run")))


@pytest.mark.parametrize(("file", "words", "write"), some(OTHER_FILES))
def test_hostile_content_of_models_and_tasks_is_one_line(file: str, words: str, write: Any, place: Place) -> None:
    write(place.inputs / file)
    known = {"hf", "run", "task"}
    check_refused(place.command(*(place.inputs / word if word in known else word for word in words.split())))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def hole(path: Path) -> None:
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize("write", [pipe, hole])
@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("run/checkpoints/12/manifest.json", "generate run --prompt a --max-tokens 2"),
        ("run/checkpoints/12/state/manifest.ocdbt", "audit run"),
        ("run/metrics.jsonl", "plot run --out plots"),
        ("run/summary.json", "plot run --out plots"),
        ("hf/model.safetensors", "export hf exported"),
        ("task/task.json", "evaluate run --tasks task"),
        ("task/rows.jsonl", "evaluate run --tasks task"),
        ("result.json", "compare result.json result.json"),
    ],
)
def test_no_command_waits_for_a_pipe_or_reads_a_hole(file: str, words: str, write: Any, place: Place) -> None:
    (place.inputs / "result.json").write_text("{}")
    write(place.inputs / file)
    known = {"hf", "run", "task", "result.json"}
    check_refused(place.command(*(place.inputs / word if word in known else word for word in words.split())))


@pytest.mark.parametrize("kind", ["names", "scores"])
def test_a_plot_of_a_million_names_is_small(kind: str, place: Place) -> None:
    name = {"names": "k{}", "scores": "val_{}_1_shot"}[kind]
    lines = (json.dumps({"update": n, "tokens": n, "loss": 1.0, name.format(n): 1}) + "\n" for n in range(140_000))
    (place.inputs / "run" / "metrics.jsonl").write_text("".join(lines))
    check_refused(place.command(*READING["plot"](place.inputs / "run")))


TASKS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "variants": ({"answer": "{l}{t}"}, [{"q": "1", "l": list(range(300_000)), "t": "x" * 4_000_000}]),
    "long prompts": ({"prompt": "{t}" * 16}, [{"t": "x" * 4_000_000, "a": "1"}] * 2),
    "many fields": ({"prompt": "{q}" * 1_000_000}, [{"q": "1", "a": "1"}] * 10_000),
    "slow filters": ({"filters": [".*.*.*b"] * 20}, [{"q": "1", "a": "1"}] * 4),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_that_multiplies_its_rows_is_small(name: str, place: Place) -> None:
    settings, rows = TASKS[name]
    task = {"name": "t", "kind": "generate", "prompt": "{q} =", "answer": "{a}", "max_tokens": 2, "rows": "rows.jsonl"}
    (place.inputs / "task" / "task.json").write_text(json.dumps(task | settings))
    (place.inputs / "task" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_refused(place.command(*READING["evaluate"](place.inputs / "run")))


TOKENIZERS: dict[str, dict[str, Any]] = {
    "expression": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a+b"}, "behavior": "Isolated",
                                     "invert": False}},
    "pieces": {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["a" * 9000, -1], ["a", -1]]}},
    "words": {"model": {"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##",
                        "max_input_chars_per_word": 1000, "vocab": {"a": 0, "##a": 1}}},
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_reads_text_again_and_again_is_refused(name: str, place: Place) -> None:
    path = place.inputs / "run" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | TOKENIZERS[name]))
    (place.inputs / "task" / "rows.jsonl").write_text('{"a": "' + "a" * 9_000_000 + '", "b": "x"}\n')
    outcome = place.command(*READING["evaluate"](place.inputs / "run"))
    check_refused(outcome)
    assert outcome.status == 2


def test_names_with_control_characters_are_shown_escaped(place: Place) -> None:
    """A name of a folder can neither change the terminal nor begin a line."""
    run = (place.inputs / "run").rename(place.inputs / "a\x1b[2J\nerror: b\u202e")
    for name in ("audit", "plot", "plan"):
        outcome = place.command(*READING[name](run))
        assert not {"\x1b", "\u202e"} & set(outcome.output + outcome.error)
        check_refused(outcome)


def check_refused(outcome: Outcome) -> None:
    """Success, or one line of error; a plot may leave out what it cannot read, an audit lists it on stdout."""
    assert outcome.noted == ""
    assert outcome.status in (0, 1, 2)
    errors = [line for line in outcome.error.splitlines() if line.startswith("error: ")]
    assert len(errors) == (outcome.status == 2 or (outcome.status == 1 and "WRONG" not in outcome.output))


def test_the_audit_hook_notes_what_reading_must_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from fuzz import Watch  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(sys, "addaudithook", lambda hook: None)  # a hook cannot be removed
    monkeypatch.setattr("threading.excepthook", None)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    out, inputs = tmp_path / "out", tmp_path / "inputs"
    for folder in (out, inputs):
        folder.mkdir()
    (out / "link").symlink_to(inputs / "a")
    watch = Watch([out], inputs)
    opened = os.open(out, os.O_RDONLY)
    allowed = (
        ("open", (str(out / "a"), "w", 0)), ("open", (str(inputs / "a"), "r", 0)), ("os.remove", (out / "a", -1)),
        ("os.remove", ("a", opened)), ("os.rename", (out / "a", out / "b", -1, -1)), ("exec", (__file__,)),
    )  # fmt: skip
    noted = (
        ("open", (str(inputs / "a"), "w", 0)), ("open", (f"{out}2/a", "a", 0)), ("open", (str(out / "link"), "w", 0)),
        ("open", ("a", None, os.O_CREAT)), ("os.rename", (inputs / "a", out / "a", -1, -1)), ("os.remove", ("a", -1)),
        ("os.mkdir", (tmp_path / "new", 0o777, -1)), ("socket.connect", (None, "host")), ("os.fork", ()),
        ("exec", (str(inputs / "a.py"),)),
    )  # fmt: skip
    assert [event for event in allowed if watch.problem(*event)] == []
    assert [event for event in noted if not watch.problem(*event)] == []
    os.close(opened)


def test_fuzzing_of_some_seconds_has_no_finding(tmp_path: Path) -> None:
    words = ["--seed", "8", "--cases", "120", "--minutes", "4", "--out", tmp_path]
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "fuzz.py", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
