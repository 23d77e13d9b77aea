"""What a token costs as the context grows: time and memory of an update, with scores written out and in blocks.

    python benchmarks/context.py [--contexts 256,1024,4096,8192] [--rounds 5] [key.path=value ...]

The model of the preset `long_context`, on made-up tokens: as many rows of each context as make `--tokens` (8192), all
in one microbatch. The forms take turns, round by round; medians. Memory is the compiler's own count of temporaries.
`--at-most GiB`: a program that needs more is compiled, and not run.
"""

import argparse
import time
from statistics import median
from typing import Any

from lmjax.system import runtime

runtime.prepare()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from lmjax.config import presets  # noqa: E402
from lmjax.config.codec import apply_overrides  # noqa: E402
from lmjax.parallel import mesh  # noqa: E402
from lmjax.run import build  # noqa: E402

FORMS = ("xla", "blockwise")


class Measured:
    """One form at one context: its compiled update, and the seconds that it took."""

    def __init__(self, form: str, context: int, tokens: int, words: list[str]) -> None:
        sizes = [f"model.context={context}", f"batch.tokens=((0,{tokens}),)", f"batch.microbatch={tokens // context}"]
        config = apply_overrides(presets.load("long_context"), [*sizes, f"model.attention={form}", *words])
        run = build.without_data(config)
        self.update = build.update_function(run).lower(run.abstract_state, run.abstract_batch).compile()
        self.temporaries = self.update.memory_analysis().temp_size_in_bytes
        self._run, self._state, self._done, self.seconds = run, None, 0, list[float]()

    def step(self) -> None:
        """One update, timed."""
        if self._state is None:
            self._state, self._batch = build.init(self._run), batch_of(self._run)
        number = mesh.put_tree({"update": np.int32(self._done)}, mesh.replicated(self._run.mesh))
        begun = time.perf_counter()
        self._state, metrics = self.update(self._state, self._batch | number)
        jax.block_until_ready(metrics)
        self.seconds.append(time.perf_counter() - begun)
        self._done += 1


def batch_of(run: Any) -> Any:
    """A batch of random tokens."""
    rng, vocab = np.random.default_rng(0), run.config.model.vocab_size
    batch = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), run.abstract_batch)
    for name in ("inputs_BT", "targets_BT"):
        batch["arrays"][name] = rng.integers(0, vocab, batch["arrays"][name].shape, dtype=np.int32)
    batch["arrays"]["weights_BT"] += 1
    scalars = batch | {"microbatches": np.int32(1), "learning_rate": np.float32(1e-3)}
    arrays = mesh.put_batch(scalars.pop("arrays"), run.mesh)
    return {"arrays": arrays, **mesh.put_tree(scalars, mesh.replicated(run.mesh))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", default="256,1024,4096,8192")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--at-most", type=float, default=8.0)
    parser.add_argument("words", nargs="*", metavar="key.path=value")
    options = parser.parse_args()
    print("| context | " + " | ".join(f"{form}: a token | temporaries" for form in FORMS) + " |")
    print("|---|" + "---|---|" * len(FORMS))
    for context in map(int, options.contexts.split(",")):
        made = {form: Measured(form, context, options.tokens, options.words) for form in FORMS}
        for number in range(options.rounds + 1):
            for each in made.values():
                if each.temporaries <= options.at_most * 2**30:
                    each.step()
            if number == 0:
                for each in made.values():
                    each.seconds.clear()  # the first has to fetch its memory
        cells = []
        for each in made.values():
            took = f"{median(each.seconds) / options.tokens * 1e6:.0f} µs" if each.seconds else "not run"
            cells.append(f"{took} | {each.temporaries / 2**20:,.0f} MiB")
        print(f"| {context:,} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
