"""Measures ingestion: seconds, megabytes a second and peak memory, on a text file that it makes itself.

    python benchmarks/ingest.py [MEGABYTES] [--tokenizer bpe|bytes|characters] [--vocab-size N] [--document KIND]

The text is random paragraphs of English: sentences of the embedded corpus, drawn with a fixed seed. Every measurement
runs in a process of its own: one that prepares the store, one that opens it again.
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


def prepare(path: str, cache: str, options: dict[str, Any]) -> dict[str, float]:
    """Prepares the store in this process and says what it took."""
    from lmjax.config import DataConfig, TokenizerConfig
    from lmjax.data.store import preparation

    tokenizer = TokenizerConfig(options["tokenizer"], options["vocab_size"])
    split = "tail" if options["document"] == "file" else "hash"
    config = DataConfig(files=(path,), tokenizer=tokenizer, document=options["document"], validation=split, cache=cache)
    begun = time.perf_counter()
    made = preparation.prepare(config)
    return {
        "seconds": time.perf_counter() - begun,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,  # kilobytes on Linux
        "tokens": sum(len(tokens.ids) for tokens in (*made.sources, made.validation)),
    }


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
        for name in ("prepare", "reuse"):
            call = f"import json, ingest; print(json.dumps(ingest.prepare({str(path)!r}, {folder!r}, {options!r})))"
            run = subprocess.run(
                [sys.executable, "-c", call], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=True
            )
            found = json.loads(run.stdout)
            rate = path.stat().st_size / found["seconds"] / 1e6
            print(
                f"{name}: {path.stat().st_size / 1e6:,.0f} MB, {found['tokens']:,} tokens, {found['seconds']:.2f} s, "
                f"{rate:,.1f} MB/s, peak memory {found['peak_mb']:,.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
