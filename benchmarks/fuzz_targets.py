"""What `fuzz.py` mutates: small valid examples, and the functions and commands that read them."""

import bz2
import gzip
import io
import json
import lzma
import random
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fuzz_mutations import (
    Edit,
    edit_bytes,
    edit_journal,
    edit_json,
    edit_json_lines,
    edit_safetensors,
    edit_text,
)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TEXT = "\n\n".join(f"The cat number {n} sat on a mat and saw {n % 7} dogs; naïve, 漢字, don't." for n in range(300))


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


# ---- Examples -------------------------------------------------------------------------------------------------------


def make_examples(folder: Path) -> None:
    """Writes every example; takes some seconds, as a small model is trained."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    from lmjax.config import Config
    from lmjax.config.codec import apply_overrides
    from lmjax.run import launch
    from tests.interop import gguf_files

    (folder / "text.txt").write_text(TEXT)
    rows = [{"text": f"row {n} of é", "question": f"{n} + 1", "answer": str(n + 1), "n": n} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows.json").write_text(json.dumps(rows))
    for name, mark in (("csv", ","), ("tsv", "\t")):
        lines = [mark.join(rows[0]), *(mark.join(map(str, row.values())) for row in rows)]
        (folder / f"rows.{name}").write_text("\n".join(lines) + "\n")
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    table = pa.table({"text": ["a", "b"]})
    with pa.ipc.new_file(str(folder / "rows.arrow"), table.schema) as file:
        file.write_table(table)
    packed = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.ZstdCompressor().compress}
    for name, compress in packed.items():
        (folder / f"text.txt.{name}").write_bytes(compress(TEXT.encode()))
    (folder / "task").mkdir()
    (folder / "task" / "rows.jsonl").write_text((folder / "rows.jsonl").read_text())
    task = {"kind": "choose", "prompt": "{question} =", "answer": "{answer}", "choices": ["{answer}", "0"]}
    (folder / "task" / "task.json").write_text(json.dumps({**task, "rows": "rows.jsonl", "name": "sums"}))
    graded = {"input": "a", "target_scores": {"x": 1, "y": 0}}
    bigbench = {"name": "b", "description": "d", "metrics": ["multiple_choice_grade"], "examples": [graded] * 20}
    (folder / "bigbench.json").write_text(json.dumps({**bigbench, "preferred_score": "multiple_choice_grade"}))
    gguf_files.small(folder / "model.gguf")
    changes = (
        f"data.files=[{folder / 'text.txt'}]", "data.tokenizer.vocab_size=300", "data.validation_fraction=0.1",
        "model.layers=1", "model.width=16", "model.heads=2", "model.context=32", "batch.tokens=((0,256),)",
        "batch.microbatch=4", "train.updates=12", "train.evaluate_every=6", "train.baselines=false",
        "train.sample_tokens=0", "checkpoint.every=6", "optimizer.name=adamw",
    )  # fmt: skip
    assert launch.start(apply_overrides(Config(name="fuzz"), changes), folder / "run") == 0
    (folder / "tokenizer.json").write_bytes((folder / "run" / "tokenizer.json").read_bytes())
    assert command("export", folder / "run", folder / "hf") == 0
    words = ("--tasks", folder / "task", "--json", folder / "result.json", "--samples", "--limit", "8")
    assert command("evaluate", folder / "run", *words) == 0


# ---- Readers --------------------------------------------------------------------------------------------------------


def command(*words: str | Path) -> int:
    """A complete command in this process; its output is checked and its exit status returned."""
    from lmjax.cli import main

    errors = io.StringIO()
    status: Any = None
    with redirect_stdout(io.StringIO()), redirect_stderr(errors), suppress(BrokenPipeError):
        try:
            main.main([str(word) for word in words])
        except SystemExit as error:
            status = error.code
    text = errors.getvalue()
    assert status in (0, 1, 2), f"status {status}: {text[-500:]}"
    assert "Traceback" not in text, text[-2000:]
    if status == 2:
        lines = [line for line in text.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, f"status 2 with {len(lines)} lines: {text[-2000:]}"
    return status


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
    from lmjax.training import checkpoint

    for folder in checkpoint.folders(path / "checkpoints"):
        checkpoint.verify(folder)


def compare(path: Path) -> None:
    from lmjax.evaluation import report
    from lmjax.evaluation.compare import compare_results

    result = report.read_json(path)
    compare_results(result, result)


def audit(path: Path) -> None:
    command("audit", path)


def generate(path: Path) -> None:
    command("generate", path, "--prompt", "The cat", "--max-tokens", "3", "--temperature", "0")


def evaluate_task(path: Path) -> None:
    command("evaluate", path.parent / "run", "--tasks", path, "--limit", "3", "--no-cache")


def export(path: Path) -> None:
    command("export", path, path.parent / "exported")


def plot(path: Path) -> None:
    command("plot", path, "--out", path.parent / "plots")


def resume_checks(path: Path) -> None:
    """What a resume reads before it opens the run."""
    from lmjax.config import checks, presets

    checks.check(presets.load(str(path / "config.json"), resuming=True, report=lambda line: None))


CHECKPOINT = "checkpoints/12/"
FILES = {"rows.jsonl": edit_json_lines, "rows.json": edit_json, "rows.csv": edit_text, "rows.tsv": edit_text,
         "rows.parquet": edit_bytes, "rows.arrow": edit_bytes}  # fmt: skip
PARTS = {"config.json": edit_json, "journal.jsonl": edit_journal, "metrics.jsonl": edit_json_lines,
         "tokenizer.json": edit_json, CHECKPOINT + "meta.json": edit_json,
         CHECKPOINT + "manifest.json": edit_json}  # fmt: skip

TARGETS = [
    Target("run", "config.json", edit_json, lambda run: plan(run / "config.json"), 3),
    Target("run", "config.json", edit_json, resume_checks, 1),
    Target("run", "journal.jsonl", edit_journal, lambda run: read_journal(run / "journal.jsonl"), 3),
    Target("run", "metrics.jsonl", edit_json_lines, lambda run: read_metrics(run / "metrics.jsonl")),
    Target("run", CHECKPOINT + "manifest.json", edit_json, read_checkpoints),
    Target("run", CHECKPOINT + "meta.json", edit_json, read_checkpoints),
    *(Target(name, "", edit, read_rows) for name, edit in FILES.items()),
    *(Target(f"text.txt.{kind}", "", edit_bytes, read_packed) for kind in ("gz", "bz2", "xz", "zst")),
    Target("text.txt", "", edit_text, read_lines),
    Target("tokenizer.json", "", edit_json, read_tokenizer, 3),
    Target("task", "task.json", edit_json, read_task, 2),
    Target("task", "rows.jsonl", edit_json_lines, read_task),
    Target("bigbench.json", "", edit_json, read_task),
    Target("hf", "model.safetensors", edit_safetensors, read_weights, 3),
    Target("hf", "config.json", edit_json, read_model, 0.5),
    Target("model.gguf", "", edit_bytes, read_gguf, 3),
    Target("result.json", "", edit_json, compare, 2),
    # Complete commands
    *(Target("run", name, edit, audit, 0.08) for name, edit in PARTS.items()),
    *(Target("run", name, edit, generate, 0.04) for name, edit in PARTS.items()),
    *(Target("run", name, edit, export, 0.04) for name, edit in PARTS.items()),
    *(Target("run", name, edit, plot, 0.04) for name, edit in PARTS.items()),
    Target("hf", "config.json", edit_json, generate, 0.1),
    Target("hf", "model.safetensors", edit_safetensors, generate, 0.1),
    Target("hf", "tokenizer.json", edit_json, generate, 0.1),
    Target("model.gguf", "", edit_bytes, generate, 0.15),
    Target("task", "task.json", edit_json, evaluate_task, 0.2),
]


def choose(rng: random.Random) -> Target:
    return rng.choices(TARGETS, [target.weight for target in TARGETS])[0]


def warm_up(examples: Path) -> None:
    """Reads every example unchanged: all must be valid, and imports and compilations are done afterwards."""
    warnings.simplefilter("ignore")
    for example, read in {(target.example, target.read): None for target in TARGETS}:
        read(examples / example)
