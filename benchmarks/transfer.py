"""What pretraining buys: a classifier that starts from a pretrained run against the same from scratch.

    python benchmarks/transfer.py RUN [--records 100,400,0] [--seeds 3] [key.path=value ...]

RUN is a run of BERT or GPT, such as `runs/bert_tiny`. Both sides have its architecture and tokenizer, the same labelled
records (so many; 0: all), order, updates and validation records; the table shows the mean over seeds of the accuracy on
the validation records, at the end, and the range.
"""

import argparse
import json
import tempfile
from pathlib import Path

from lmjax.system import runtime

runtime.prepare()

from lmjax.config import presets  # noqa: E402
from lmjax.config.codec import apply_overrides  # noqa: E402
from lmjax.run import launch, transfer  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--records", default="100,400,0")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("words", nargs="*", metavar="key.path=value")
    options = parser.parse_args()
    base = apply_overrides(presets.load("classify"), options.words)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for records in map(int, options.records.split(",")):
            found: dict[str, list[float]] = {"pretrained": [], "from scratch": []}
            for seed in range(options.seeds):
                words = [f"seed={seed}", f"data.limit={records}", f"init_from={options.run.absolute()}"]
                pretrained = apply_overrides(base, words)
                scratch = apply_overrides(transfer.adopt(pretrained), ["init_from="])
                for name, config in (("pretrained", pretrained), ("from scratch", scratch)):
                    run_dir = Path(folder) / f"{name}-{records}-{seed}"
                    launch.start(config, run_dir)
                    found[name].append(json.loads((run_dir / "summary.json").read_text())["val_accuracy"])
            rows.append((records or "all", found))
    print(f"\n{'records':>8}  {'pretrained':>22}  {'from scratch':>22}")
    for records, found in rows:
        cells = (f"{sum(v) / len(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in found.values())
        print(f"{records:>8}  " + "  ".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    main()
