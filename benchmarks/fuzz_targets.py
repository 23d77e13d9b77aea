"""What `fuzz.py` mutates: files of small valid examples, and the functions and commands that read them."""

import bz2
import gzip
import io
import lzma
import random
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import zstandard
from fuzz_mutations import (
    Edit,
    edit_bytes,
    edit_header,
    edit_journal,
    edit_json,
    edit_json_lines,
    edit_parquet,
    edit_safetensors,
    edit_text,
    packed,
)

# What a terminal would not show as text.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Target:
    """A file of an example, how it is edited, and what then reads it."""

    #: The example: a file or a folder in the folder of examples.
    example: str
    #: The file in the example; empty if the example is the file.
    file: str
    edit: Edit
    #: Reads the edited example.
    read: Callable[[Path], Any]
    #: How often the target is chosen.
    weight: float = 1.0
    #: Other examples that are put next to it.
    needs: tuple[str, ...] = ()


# ---- Readers --------------------------------------------------------------------------------------------------------


def command(*words: str | Path) -> int:
    """A complete command in this process; its output is checked and its exit status returned."""
    from lmjax.cli import main

    output, errors = io.StringIO(), io.StringIO()
    status: Any = None
    with redirect_stdout(output), redirect_stderr(errors), suppress(BrokenPipeError):
        try:
            main.main([str(word) for word in words])
        except SystemExit as error:
            status = error.code
    text = errors.getvalue()
    assert status in (0, 1, 2), f"status {status}: {text[-500:]}"
    assert "Traceback" not in text, text[-2000:]
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    # An audit with status 1 lists the problems on stdout.
    expected = status == 2 or (status == 1 and "WRONG" not in output.getvalue())
    assert len(lines) == expected, f"status {status} with {len(lines)} lines: {text[-2000:]}"
    shown = text if words[0] == "generate" else output.getvalue() + text  # else what the model says
    assert not CONTROL.search(shown), f"control characters: {CONTROL.findall(shown)[:5]} in {shown[-2000:]!r}"
    return status


def out(path: Path) -> Path:
    """The folder that a command may write to."""
    return path.parents[1] / "out"


def plan(path: Path) -> None:
    from lmjax.config import checks, presets, trust
    from lmjax.run import build
    from lmjax.run.plan import tables

    config = presets.load(str(path), restrict=trust.for_reading, report=lambda line: None)
    checks.check(config)
    build.check(config)
    tables(build.without_data(config))


def read_rows(path: Path) -> None:
    from lmjax.system import readers

    for _ in islice(readers.rows(path), 100_000):
        pass


def read_packed(path: Path) -> None:
    from lmjax.system import compression

    for _ in islice(compression.blocks(path), 1000):
        pass


def read_lines(path: Path) -> None:
    from lmjax.system import readers

    for _ in islice(readers.lines(path), 100_000):
        pass


def read_tokenizer(path: Path) -> None:
    from lmjax.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode("The cat sat; naïve 漢字 don't\n  x" + "a" * 200)
    tokenizer.decode(ids)


def read_task(path: Path) -> None:
    from lmjax.tasks import loaders

    task = loaders.load(str(path))
    for number in range(min(3, len(task.documents))):
        str(task.documents[number])


def read_journal(path: Path) -> None:
    from lmjax.journal import journal
    from lmjax.journal.history import fold

    fold(journal.read(path))


def read_metrics(path: Path) -> None:
    from lmjax.training import metrics

    metrics.scores(metrics.read(path))


def read_weights(path: Path) -> None:
    from lmjax.interop.huggingface import weights

    stored = weights.read(path)
    for name in list(stored):
        stored[name].sum()


def read_gguf(path: Path) -> None:
    from lmjax.interop.gguf import file

    file.read(path)


def read_model(path: Path) -> None:
    from lmjax.run import pretrained

    pretrained.load(path)


def read_checkpoints(path: Path) -> None:
    """Reads also a checkpoint whose files do not have the recorded hashes, as a file may change after its check."""
    from lmjax.training import checkpoint

    for folder in checkpoint.folders(path / "checkpoints"):
        checkpoint.verify(folder)
    for folder in checkpoint.folders(path / "checkpoints"):
        checkpoint.read(folder)


def compare_equal(path: Path) -> None:
    from lmjax.evaluation import report
    from lmjax.evaluation.compare import compare_results

    result = report.read_json(path)
    compare_results(result, result)


def compare(path: Path) -> int:
    return command("compare", path, path.parent / "other.json", "--plot", out(path) / "compared.png")


def audit(path: Path) -> int:
    return command("audit", path)


def replay(path: Path) -> int:
    return command("audit", path, "--replay", "8:9", "--config", out(path) / "fresh.json")


def generate(path: Path) -> int:
    return command("generate", path, "--prompt", "The cat", "--max-tokens", "3", "--temperature", "0")


def evaluate(path: Path) -> int:
    result = out(path) / "result.json"
    return command("evaluate", path, "--tasks", path.parent / "task", "--limit", "2", "--json", result, "--samples")


def evaluate_task(path: Path) -> int:
    return command("evaluate", path.parent / "run", "--tasks", path, "--limit", "3", "--no-cache")


def explain_task(path: Path) -> int:
    return command("evaluate", "--explain", path, "--shots", "2" if path.name == "task" else "0")


def export(path: Path) -> int:
    return command("export", path, out(path) / "exported")


def plot(path: Path) -> int:
    return command("plot", path, "--out", out(path) / "plots")


def show_plan(path: Path) -> int:
    return command("plan", path / "config.json")


def print_config(path: Path) -> int:
    return command("train", path / "config.json", "--print-config")


def resume_checks(path: Path) -> None:
    """What a resume reads before it opens the run."""
    from lmjax.config import checks, presets

    checks.check(presets.load(str(path / "config.json"), resuming=True, report=lambda line: None))


CHECKPOINT = "checkpoints/12/"
FILES = {"rows.jsonl": edit_json_lines, "rows.json": edit_json, "rows.csv": edit_text, "rows.tsv": edit_text,
         "rows.parquet": edit_parquet, "rows.arrow": edit_bytes}  # fmt: skip
PACKERS = {"gz": (gzip.compress, gzip.decompress), "bz2": (bz2.compress, bz2.decompress),
           "xz": (lzma.compress, lzma.decompress),
           "zst": (zstandard.ZstdCompressor().compress, zstandard.ZstdDecompressor().decompress)}  # fmt: skip
PARTS = {"config.json": edit_json, "journal.jsonl": edit_journal, "metrics.jsonl": edit_json_lines,
         "tokenizer.json": edit_json, CHECKPOINT + "meta.json": edit_json,
         CHECKPOINT + "manifest.json": edit_json}  # fmt: skip
MODEL = {"config.json": edit_json, "model.safetensors": edit_safetensors, "tokenizer.json": edit_json,
         "tokenizer_config.json": edit_json, "generation_config.json": edit_json}  # fmt: skip
INDEX = "model.safetensors.index.json"
TASKS = ("task", "generate", "perplexity")

TARGETS = [
    Target("run", "config.json", edit_json, lambda run: plan(run / "config.json"), 3),
    Target("run", "config.json", edit_json, resume_checks, 1),
    Target("run", "journal.jsonl", edit_journal, lambda run: read_journal(run / "journal.jsonl"), 3),
    Target("run", "metrics.jsonl", edit_json_lines, lambda run: read_metrics(run / "metrics.jsonl")),
    Target("run", CHECKPOINT + "manifest.json", edit_json, read_checkpoints),
    Target("run", CHECKPOINT + "meta.json", edit_json, read_checkpoints),
    *(Target(name, "", edit, read_rows) for name, edit in FILES.items()),
    *(Target(f"text.txt.{kind}", "", packed(*pair, edit_text), read_packed, 0.5) for kind, pair in PACKERS.items()),
    *(Target(f"rows.jsonl.{kind}", "", packed(*pair, edit_json_lines), read_rows, 0.5)
      for kind, pair in PACKERS.items()),
    Target("text.txt", "", edit_text, read_lines),
    Target("tokenizer.json", "", edit_json, read_tokenizer, 3),
    *(Target(task, "task.json", edit_json, read_task) for task in TASKS),
    *(Target(task, "rows.jsonl", edit_json_lines, read_task, 0.5) for task in TASKS),
    Target("bigbench.json", "", edit_json, read_task),
    Target("hf", "model.safetensors", edit_safetensors, read_weights, 3),
    Target("hf", "config.json", edit_json, read_model, 0.5),
    Target("hf", "tokenizer_config.json", edit_json, read_model, 0.3),
    Target("shards", INDEX, edit_json, read_model, 0.5),
    Target("model.gguf", "", edit_header, read_gguf, 3),
    Target("result.json", "", edit_json, compare_equal, 1),
    # Complete commands
    *(Target("run", name, edit, read, weight) for name, edit in PARTS.items()
      for read, weight in ((audit, 0.08), (replay, 0.02), (generate, 0.04), (export, 0.04), (plot, 0.04))),
    *(Target("run", name, edit, evaluate, 0.03, needs=("task",)) for name, edit in PARTS.items()),
    *(Target("hf", name, edit, read, 0.05) for name, edit in MODEL.items() for read in (generate, export)),
    *(Target("hf", name, edit, evaluate, 0.03, needs=("task",)) for name, edit in MODEL.items()),
    Target("model.gguf", "", edit_header, generate, 0.2),
    Target("model.gguf", "", edit_header, evaluate, 0.05, needs=("task",)),
    *(Target(task, "task.json", edit_json, evaluate_task, 0.1, needs=("run",)) for task in TASKS),
    *(Target(task, "rows.jsonl", edit_json_lines, evaluate_task, 0.05, needs=("run",)) for task in TASKS),
    *(Target(task, "task.json", edit_json, explain_task, 0.1) for task in TASKS),
    Target("bigbench.json", "", edit_json, evaluate_task, 0.1, needs=("run",)),
    Target("result.json", "", edit_json, compare, 0.3, needs=("other.json",)),
    Target("run", "config.json", edit_json, show_plan, 0.3),
    Target("run", "config.json", edit_json, print_config, 0.3),
]  # fmt: skip


def choose(rng: random.Random) -> Target:
    return rng.choices(TARGETS, [target.weight for target in TARGETS])[0]


def warm_up(examples: Path) -> None:
    """Reads every example unchanged: all must be valid, and imports and compilations are done afterwards."""
    warnings.simplefilter("ignore")
    for example, read in {(target.example, target.read): None for target in TARGETS}:
        shutil.rmtree(examples.parent / "out", ignore_errors=True)
        (examples.parent / "out").mkdir()
        status = read(examples / example)
        name = getattr(read, "__name__", "")
        assert not status, f"{name} {example}: status {status}"
