"""Small valid examples of the files that `fuzz.py` mutates."""

import bz2
import gzip
import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path

TEXT = "\n\n".join(f"The cat number {n} sat on a mat and saw {n % 7} dogs; naïve, 漢字, don't." for n in range(300))
ROWS = [{"text": f"row {n} of é", "question": f"{n} + 1", "answer": str(n + 1), "n": n} for n in range(40)]
#: Tasks of each kind, on ROWS.
TASKS = {
    "choose": {"prompt": "{question} =", "answer": "{answer}", "choices": ["{answer}", "0"], "chance": 0.5},
    "generate": {"prompt": "{question|strip} =", "answer": "{answer}", "stop": ["\n"], "max_tokens": 2,
                 "filters": ["[0-9]+"], "metrics": ["bleu"], "shots": {"fixed": [0]}},
    "perplexity": {"prompt": "{text}"},
}  # fmt: skip


def make_examples(folder: Path, command: Callable[..., int]) -> None:
    """Writes every example; takes some seconds, as a small model is trained.

    `command` runs a command of lmjax and returns its exit status.
    """
    from tests.interop import gguf_files

    make_tables(folder)
    make_tasks(folder)
    gguf_files.small(folder / "model.gguf")
    make_run(folder)
    shutil.copy(folder / "run" / "tokenizer.json", folder)
    assert command("export", folder / "run", folder / "hf") == 0
    split_weights(folder / "hf", folder / "shards")
    words = ("--tasks", folder / "task", "--json", folder / "result.json", "--samples", "--limit", "8")
    assert command("evaluate", folder / "run", *words) == 0
    shutil.copy(folder / "result.json", folder / "other.json")  # the last file


def make_tables(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    (folder / "text.txt").write_text(TEXT)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "rows.jsonl").write_text(lines)
    (folder / "rows.json").write_text(json.dumps(ROWS))
    for name, mark in (("csv", ","), ("tsv", "\t")):
        table = [mark.join(ROWS[0]), *(mark.join(map(str, row.values())) for row in ROWS)]
        (folder / f"rows.{name}").write_text("\n".join(table) + "\n")
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")
    letters = pa.table({"text": ["a", "b"]})
    with pa.ipc.new_file(str(folder / "rows.arrow"), letters.schema) as file:
        file.write_table(letters)
    packers = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    packers["zst"] = zstandard.ZstdCompressor().compress
    for name, compress in packers.items():
        (folder / f"text.txt.{name}").write_bytes(compress(TEXT.encode()))
        (folder / f"rows.jsonl.{name}").write_bytes(compress(lines.encode()))


def make_tasks(folder: Path) -> None:
    for kind, settings in TASKS.items():
        task = folder / ("task" if kind == "choose" else kind)
        task.mkdir()
        shutil.copy(folder / "rows.jsonl", task)
        settings = {"name": kind, "kind": kind, "rows": "rows.jsonl"} | settings
        (task / "task.json").write_text(json.dumps(settings))
    graded = {"input": "a", "target_scores": {"x": 1, "y": 0}}
    bigbench = {"name": "b", "description": "d", "metrics": ["multiple_choice_grade"], "examples": [graded] * 20}
    (folder / "bigbench.json").write_text(json.dumps({**bigbench, "preferred_score": "multiple_choice_grade"}))


def make_run(folder: Path) -> None:
    from lmjax.config import Config
    from lmjax.config.codec import apply_overrides
    from lmjax.run import launch

    changes = (
        f"data.files=[{folder / 'text.txt'}]", "data.tokenizer.vocab_size=300", "data.validation_fraction=0.1",
        "model.layers=1", "model.width=16", "model.heads=2", "model.context=32", "batch.tokens=((0,256),)",
        "batch.microbatch=4", "train.updates=12", "train.evaluate_every=6", "train.baselines=false",
        "train.sample_tokens=0", "checkpoint.every=6", "optimizer.name=adamw",
    )  # fmt: skip
    assert launch.start(apply_overrides(Config(name="fuzz"), changes), folder / "run") == 0
    (folder / "run" / "config.sha256").unlink()  # it would refuse each mutated configuration at once


def split_weights(model: Path, folder: Path) -> None:
    """Copies a model of one file of weights as a model of two files with an index."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(model, folder)
    (folder / "model.safetensors").unlink()
    tensors = load_file(model / "model.safetensors")
    files = {name: f"model-{1 + at % 2:05}-of-00002.safetensors" for at, name in enumerate(tensors)}
    for file in set(files.values()):
        part = {name: tensor for name, tensor in tensors.items() if files[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
