"""Measures ingestion: seconds, megabytes a second and peak memory, on a text file that it makes itself.

    python benchmarks/ingest.py [MEGABYTES] [--tokenizer bpe|bytes|characters] [--vocab-size N] [--document KIND]

The text is random paragraphs of English: sentences of the embedded corpus, drawn with a fixed seed. Every measurement
runs in a process of its own: one that prepares the store, one that opens it again, and one that only encodes the
paragraphs with the tokenizers library.
"""

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BATCH = 1000  # paragraphs that the library encodes in a call


def write_text(path: Path, size: int) -> None:
    """About `size` bytes of paragraphs of three to nine sentences."""
    from lmjax.data.sources import docstrings

    sentences = re.split(r"(?<=[.!?])\s+", " ".join(docstrings.docstrings()["text"]))
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < size:
            drawn = iter(rng.choices(sentences, k=60_000))
            while paragraph := [sentence for _, sentence in zip(range(rng.randint(3, 9)), drawn, strict=False)]:
                file.write(" ".join(paragraph) + "\n\n")


def prepare(path: str, cache: str, options: dict[str, Any]) -> dict[str, Any]:
    """Prepares the store in this process and says what it took."""
    from lmjax.config import DataConfig, TokenizerConfig
    from lmjax.data.store import preparation

    tokenizer = TokenizerConfig(options["tokenizer"], options["vocab_size"])
    split = "tail" if options["document"] == "file" else "hash"
    config = DataConfig(files=(path,), tokenizer=tokenizer, document=options["document"], validation=split, cache=cache)
    phases: dict[str, list[float]] = {}

    def report(done: float, total: float | None, activity: str) -> None:
        phases.setdefault(activity, []).append(time.perf_counter())

    begun = time.perf_counter()
    made = preparation.prepare(config, report=report)
    return {
        "seconds": time.perf_counter() - begun,
        "phases": {activity: times[-1] - times[0] for activity, times in phases.items()},
        "peak_mb": peak_mb(),
        "tokens": sum(len(tokens.ids) for tokens in (*made.sources, made.validation)),
    }


def encode_raw(path: str, cache: str, options: dict[str, Any]) -> dict[str, Any]:
    """Encodes the paragraphs of the text with the library alone, by the tokenizer of the store."""
    from tokenizers import Tokenizer

    (file,) = Path(cache).glob("*/tokenizer.json")
    assert options["tokenizer"] == "bpe"
    tokenizer, paragraphs = Tokenizer.from_file(str(file)), Path(path).read_text(encoding="utf-8").split("\n\n")
    begun = time.perf_counter()
    for start in range(0, len(paragraphs), BATCH):
        encodings = tokenizer.encode_batch_fast(paragraphs[start : start + BATCH], add_special_tokens=False)
        [encoding.ids for encoding in encodings]
    return {"seconds": time.perf_counter() - begun, "peak_mb": peak_mb()}


def peak_mb() -> float:
    """The largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # kilobytes on Linux


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("megabytes", type=int, nargs="?", default=1000)
    parser.add_argument("--tokenizer", choices=("bpe", "bytes", "characters"), default="bpe")
    parser.add_argument("--vocab-size", type=int, default=32_768)
    parser.add_argument("--document", choices=("paragraph", "line", "file"), default="paragraph")
    options = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        write_text(path, options["megabytes"] * 10**6)
        for name in ("prepare", "reuse", *(("raw",) if options["tokenizer"] == "bpe" else ())):
            function = "encode_raw" if name == "raw" else "prepare"
            call = f"import json, ingest; print(json.dumps(ingest.{function}({str(path)!r}, {folder!r}, {options!r})))"
            run = subprocess.run(
                [sys.executable, "-c", call], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=True
            )
            show(name, path.stat().st_size / 1e6, json.loads(run.stdout))


def show(name: str, megabytes: float, found: dict[str, Any]) -> None:
    """Prints a measurement."""
    parts = [f"{megabytes:,.0f} MB", *([f"{found['tokens']:,} tokens"] if "tokens" in found else [])]
    parts += [f"{found['seconds']:.2f} s", f"{megabytes / found['seconds']:,.1f} MB/s"]
    parts += [f"peak memory {found['peak_mb']:,.0f} MB"]
    parts += [f"{activity} {seconds:.1f} s" for activity, seconds in found.get("phases", {}).items() if seconds >= 0.1]
    print(f"{name}: {', '.join(parts)}", flush=True)


if __name__ == "__main__":
    main()
