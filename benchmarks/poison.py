"""A corpus with bad documents, and a run that survives it: `python benchmarks/poison.py DIR`.

Writes into DIR the quickstart's text twice, as it is (clean.jsonl) and with a few documents of random tokens planted in
a row (poisoned.jsonl), and its tokenizer. `python benchmarks/poison.py DIR --run` then trains on both, audits the
poisoned run, trains once more on the poisoned text with what was skipped left out from the start, and prints the
results side by side. The windows are read in the order of the text, as in a stream of shards, so that the bad documents
come together.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from lmjax.config import Config, presets
from lmjax.data import tokenizer
from lmjax.data.order.order import Order
from lmjax.data.sources import streams
from lmjax.data.store.ingest import Split
from lmjax.display.console import Console

TRAIN = str(Path(__file__).resolve().parents[1] / "train.py")
DOCUMENTS, TOKENS = 5, 3000
BEFORE = 270_000  # tokens read before the bad documents come, in the first epoch: about 130 updates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--run", action="store_true", help="train and compare, too")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="changes to the quickstart")
    options = parser.parse_intermixed_args()
    make(options.folder)
    if options.run:
        compare(options.folder, options.overrides)
    else:
        print("python train.py", *words(options.folder, "poisoned.jsonl"), *options.overrides)


def make(folder: Path) -> None:
    """The two corpora and the tokenizer, the same every time."""
    config = presets.load("quickstart")
    data = config.data
    folder.mkdir(parents=True, exist_ok=True)
    texts = list(streams.texts(data))
    trained = tokenizer.build_tokenizer(data.tokenizer, lambda: iter(texts))
    trained.save(folder / "tokenizer.json")
    split = Split(data.validation, data.validation_fraction)
    rng, planted = np.random.default_rng(0), []
    while len(planted) < DOCUMENTS:
        text = trained.decode(rng.integers(0, trained.vocab_size, TOKENS))
        if not split.takes(text):  # bad text in the validation split would only blur the comparison
            planted.append(text)
    place = _place([*texts, *planted], trained, split, config)
    write(folder / "clean.jsonl", texts)
    write(folder / "poisoned.jsonl", [*texts[:place], *planted, *texts[place:]])


def _place(texts: list[str], trained: tokenizer.Tokenizer, split: Split, config: Config) -> int:
    """Before which document the bad ones must stand: an epoch begins anywhere on the ring of the training text."""
    sizes = [0 if split.takes(text) else len(trained.encode(text)) + 1 for text in texts]
    total, context = sum(sizes), config.model.context
    begin = int(Order((total // context,), config.seed).shift(0, 0, total))
    ends = np.cumsum(sizes[:-DOCUMENTS])
    return int(np.searchsorted(ends, (begin + BEFORE) % total))


def write(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def words(folder: Path, corpus: str) -> list[str]:
    return [
        "quickstart",
        f"data.files=[{folder / corpus}]",
        "data.tokenizer.kind=file",
        f"data.tokenizer.path={folder / 'tokenizer.json'}",
        "data.shuffle=false",
        "train.updates=200",
    ]


def compare(folder: Path, overrides: list[str]) -> None:
    """Trains on the clean text, on the poisoned, and on the poisoned with what was skipped left out from the start."""

    def run(*arguments: str) -> None:
        print("$", *arguments, flush=True)
        subprocess.run([sys.executable, *arguments], check=True)

    for name in ("clean", "poisoned"):
        run(TRAIN, *words(folder, f"{name}.jsonl"), *overrides, "--run-dir", str(folder / name))
    run("-m", "lmjax", "audit", str(folder / "poisoned"), "--config", str(folder / "excluded.json"))
    run(TRAIN, str(folder / "excluded.json"), "--run-dir", str(folder / "excluded"))
    found = {
        name: json.loads((folder / name / "summary.json").read_text()) for name in ("clean", "poisoned", "excluded")
    }
    rows = [
        (
            name,
            f"{end['val_loss']:.4f}",
            f"{end['val_bits_per_byte']:.4f}",
            f"{end['seconds']:.0f} s",
            end["digest"][:8],
        )
        for name, end in found.items()
    ]
    with Console() as console:
        console.table("Validation", rows, ("run", "loss", "bits per byte", "time", "digest"))
    share = found["poisoned"]["val_loss"] / found["clean"]["val_loss"] - 1
    print(f"the poisoned run's validation loss is {share:+.2%} off the clean run's")
    assert found["poisoned"]["digest"] == found["excluded"]["digest"], "not the same bits"
    print("the run that skipped and the run that never saw the data end with the same bits")


if __name__ == "__main__":
    main()
