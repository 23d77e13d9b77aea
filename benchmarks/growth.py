"""Measures how time and memory of each stage grow: at n, 2n and 4n, each in a process of its own.

    python benchmarks/growth.py [STAGE ...] [--scale FACTOR]

For every stage it prints the CPU seconds and the peak memory (above that of the same process before the stage), and the
exponent of the growth, log4(seconds at 4n / seconds at n): 1 is linear, 2 quadratic. An exponent above 1.3 is marked;
n log n stays below 1.1 at these sizes. The inputs are made from a fixed seed and are not part of what is measured.
"""

import argparse
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from lmjax.system import runtime

LIMIT = 1.3  # exponents above it are marked
Stage = Callable[[], object]


# ---- Stages: each makes its input of size n in a folder, and returns what is measured ---------------------------


def rows_of_jsonl(folder: Path, n: int) -> Stage:
    """Rows of a .jsonl file."""
    from lmjax.system import readers

    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {i} " * 8, "n": i}) + "\n" for i in range(n)))
    return lambda: sum(1 for _ in readers.rows(path))


def one_long_line(folder: Path, n: int) -> Stage:
    """Bytes of a single line of .jsonl."""
    from lmjax.system import readers

    path = folder / "line.jsonl"
    path.write_text(json.dumps({"text": "ab " * (n // 3)}) + "\n")
    return lambda: sum(1 for _ in readers.rows(path))


def many_small_files(folder: Path, n: int) -> Stage:
    """Files of a corpus, identified by path, size and time."""
    from lmjax.config import DataConfig, SourceConfig
    from lmjax.data.sources import streams

    for i in range(n):
        (folder / f"{i}.txt").write_text("x")
    return lambda: streams.fingerprint(SourceConfig(files=(str(folder),)), DataConfig(files=(str(folder),)))


def ingestion(folder: Path, n: int) -> Stage:
    """Bytes of text that become a store, byte tokenizer."""
    return _prepared(folder, english(n), kind="bytes")


def vocabulary_of_english(folder: Path, n: int) -> Stage:
    """Bytes of English of which a BPE vocabulary is trained."""
    return _trained("bpe", english(n))


def vocabulary_without_blanks(folder: Path, n: int) -> Stage:
    """Letters without a blank of which a BPE vocabulary is trained."""
    return _trained("bpe", letters(n))


def pieces_without_blanks(folder: Path, n: int) -> Stage:
    """Chinese characters without a blank of which a WordPiece vocabulary is trained."""
    return _trained("wordpiece", "".join(random.Random(0).choices([chr(0x4E00 + i) for i in range(800)], k=n)))


def encoding_without_blanks(folder: Path, n: int) -> Stage:
    """Letters without a blank that a BPE encodes in the pieces of an ingestion."""
    from lmjax.config import TokenizerConfig
    from lmjax.data.sources.text import pieces
    from lmjax.data.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(TokenizerConfig(kind="bpe", vocab_size=512), lambda: iter([letters(50_000)]))
    text = letters(n)
    return lambda: [tokenizer.encode(piece) for piece, _ in pieces([text])]


def labelled_records(folder: Path, n: int) -> Stage:
    """Labelled records that become a store."""
    from lmjax.config import RecordsConfig, TokenizerConfig
    from lmjax.data.store import preparation

    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"row number {i}", "label": i % 7}) + "\n" for i in range(n)))
    config = RecordsConfig(
        files=(str(path),), texts=("text",), label="label", tokenizer=TokenizerConfig("bytes"), cache=str(folder)
    )
    return lambda: preparation.prepare(config)


def excluded_ranges(folder: Path, n: int) -> Stage:
    """Ranges of samples that an order leaves out."""
    from lmjax.data.order.order import Order

    ranges = tuple((4 * i, 4 * i + 2) for i in range(n))
    return lambda: Order(windows=(8 * n,), seed=0).excluding(ranges).take(0, 2 * n)


def journal_records(folder: Path, n: int) -> Stage:
    """Records of a journal, read and folded into a history."""
    from lmjax.journal import history, journal

    path = folder / "journal.jsonl"
    with mock.patch("os.fsync"):  # the input is not what is measured
        records = journal.Journal(path)
        machine = {"lmjax": "0", "python": "0", "jax": "0", "devices": 1, "platform": "cpu"}
        start = {"seed": 0, "tokenizer_sha256": "", "data_sha256": "", **machine}
        records.write("start", wall_step=0, update=0, cursor=0, **start)
        for i in range(1, n):
            records.note(update=i, cursor=i, loss=1.0, grad_norm=1.0)
            records.write("boundary", wall_step=i, update=i, cursor=i, reason="announced change", batch=i)
    return lambda: history.fold(journal.read(path))


def metrics_records(folder: Path, n: int) -> Stage:
    """Records of metrics.jsonl, read."""
    from lmjax.training import metrics

    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps({"update": i, "loss": 1.0, "tokens": i}) + "\n" for i in range(n)))
    return lambda: metrics.read(path)


def baseline(folder: Path, n: int) -> Stage:
    """Tokens of the Kneser-Ney baseline."""
    import numpy as np

    from lmjax.models import ngram

    ids = np.random.default_rng(0).zipf(1.3, n).clip(max=4000).astype(np.uint16)
    return lambda: ngram.kneser_ney(ids[: -n // 10], ids[-n // 10 :], vocab_size=4096)


def rows_of_a_task(folder: Path, n: int) -> Stage:
    """Rows of an evaluation task, loaded and limited to half."""
    from lmjax.evaluation import questions
    from lmjax.tasks import catalog

    path = folder / "task.jsonl"
    path.write_text("".join(json.dumps({"input": f"{i} + 1?", "answer": str(i + 1)}) + "\n" for i in range(n)))
    return lambda: questions.limited(catalog.load(str(path)).documents, n // 2)


STAGES: dict[str, tuple[Callable[[Path, int], Stage], int]] = {
    stage.__name__: (stage, n)
    for stage, n in (
        (rows_of_jsonl, 100_000),
        (one_long_line, 30_000_000),
        (many_small_files, 10_000),
        (ingestion, 10_000_000),
        (vocabulary_of_english, 4_000_000),
        (vocabulary_without_blanks, 1_000_000),
        (pieces_without_blanks, 1_000_000),
        (encoding_without_blanks, 2_000_000),
        (labelled_records, 50_000),
        (excluded_ranges, 200_000),
        (journal_records, 10_000),
        (metrics_records, 100_000),
        (baseline, 500_000),
        (rows_of_a_task, 30_000),
    )
}


# ---- Inputs -----------------------------------------------------------------------------------------------------


def english(n: int) -> str:
    """About n bytes of paragraphs of random words of the embedded corpus."""
    from lmjax.data.sources import docstrings

    words = " ".join(docstrings.docstrings()["text"]).split()
    rng, parts, size = random.Random(0), [], 0
    while size < n:
        parts.append(" ".join(rng.choices(words, k=100)))
        size += len(parts[-1]) + 2
    return "\n\n".join(parts)


def letters(n: int) -> str:
    """Return n random letters of a genome."""
    return "".join(random.Random(0).choices("ACGT", k=n))


def _trained(kind: str, text: str) -> Stage:
    from lmjax.config import TokenizerConfig
    from lmjax.data.tokenizer import build_tokenizer

    return lambda: build_tokenizer(TokenizerConfig(kind=kind, vocab_size=2048), lambda: iter([text]))  # pyright: ignore


def _prepared(folder: Path, text: str, *, kind: str) -> Stage:
    from lmjax.config import DataConfig, TokenizerConfig
    from lmjax.data.store import preparation

    path = folder / "text.txt"
    path.write_text(text)
    config = DataConfig(files=(str(path),), tokenizer=TokenizerConfig(kind), cache=str(folder))  # pyright: ignore
    return lambda: preparation.prepare(config)


# ---- Measurement ------------------------------------------------------------------------------------------------


def measure(name: str, n: int) -> dict[str, float]:
    """Run a stage in this process and return its CPU seconds and the growth of the peak memory in MB."""
    runtime.prepare()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as folder:
        stage = STAGES[name][0](Path(folder), n)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.process_time()
        stage()
        seconds = time.process_time() - begun
    return {"seconds": seconds, "mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3}


def measured(name: str, n: int) -> dict[str, float]:
    """Run `measure` in a new process."""
    call = [sys.executable, __file__, "--measure", name, str(n)]
    return json.loads(subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--scale", type=float, default=1, metavar="FACTOR", help="multiplies every n")
    parser.add_argument("--measure", nargs=2, metavar=("STAGE", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], int(options.measure[1]))))
        return
    print("| stage | unit | n | seconds at n, 2n, 4n | exponent | MB at n, 2n, 4n |")
    print("|---|---|---|---|---|---|")
    for name in options.stages or STAGES:
        stage, n = STAGES[name]
        n = int(n * options.scale)
        results = [measured(name, n * factor) for factor in (1, 2, 4)]
        exponent = math.log(results[2]["seconds"] / results[0]["seconds"], 4)
        seconds = ", ".join(f"{result['seconds']:.2f}" for result in results)
        memory = ", ".join(f"{result['mb']:.0f}" for result in results)
        mark = " **above**" if exponent > LIMIT else ""
        unit = (stage.__doc__ or "").rstrip(".")
        print(f"| {name} | {unit} | {n:,} | {seconds} | {exponent:.2f}{mark} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
