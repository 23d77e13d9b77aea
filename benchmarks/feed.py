"""How long the host takes to make one batch: 512 rows of 2049 tokens out of 200 million on disk, in milliseconds.

Run: python benchmarks/feed.py
"""

import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np

from lmjax.data.batches.windows import causal, find_windows
from lmjax.data.order.order import Order
from lmjax.data.store.store import Tokens

ROWS, CONTEXT, TOKENS, DOCUMENT = 512, 2048, 200_000_000, 700


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ids"
        ids = np.memmap(path, np.uint16, mode="w+", shape=TOKENS)
        ids[:] = np.random.default_rng(0).integers(1, 50_000, TOKENS, dtype=np.uint16)
        ids[DOCUMENT - 1 :: DOCUMENT] = 0
        ids.flush()
        tokens = Tokens(np.memmap(path, np.uint16, mode="r"), np.arange(0, TOKENS, DOCUMENT))
        windows = find_windows(tokens, CONTEXT)
        orders = {
            "one source": Order((windows,), 0),
            "100,000 excluded ranges": Order((windows,), 0, exclude=tuple((k, k + 1) for k in range(0, 200_000, 2))),
        }
        for name, order in orders.items():
            cursor = count(0, ROWS)
            print(f"order, {name}: {milliseconds(lambda o=order, c=cursor: o.take(next(c), ROWS)):.2f} ms")
        for packed in (False, True):
            order, cursor = orders["one source"], count(0, ROWS)

            def batch(order: Order = order, cursor: "count[int]" = cursor, packed: bool = packed) -> None:
                chosen, _ = order.take(next(cursor), ROWS)
                causal([tokens], chosen, order=order, context=CONTEXT, packed=packed, end_of_text=0)

            print(f"batch of {ROWS} x {CONTEXT + 1}, {packed=}: {milliseconds(batch):.2f} ms")


def milliseconds(function: Callable[[], object], repeats: int = 20) -> float:
    function()
    begun = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - begun) / repeats * 1e3


if __name__ == "__main__":
    main()
