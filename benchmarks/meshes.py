"""The same run on one device and on every mesh: losses, gradients, and what a device keeps.

    python benchmarks/meshes.py [--models gpt,llama,...] [--meshes 1x8x1x1,pmap,...] [--updates 20] [--json FILE]

Eight virtual devices of the CPU; a mesh is written data x fsdp x tensor x sequence. A small model of each family trains
on a made-up text, without dropout. The columns: the largest difference of any update's loss from that on one device; of
any element of any update's gradient (clipped to norm 1); the share of the bytes of the parameters, and of the
optimizer, that one device keeps (an eighth is 0.125; vectors are whole everywhere); the most that a device holds while
the state is made, as a share of the state; the largest array that the compiled update gathers, as a share of the
parameters.
"""

import argparse
import json
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

from lmjax.system import runtime

runtime.prepare()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from lmjax import pytrees  # noqa: E402
from lmjax.config import (  # noqa: E402
    BatchConfig,
    BERTConfig,
    CausalConfig,
    Config,
    DataConfig,
    GPTConfig,
    MaskedConfig,
    MeshConfig,
    ModelConfig,
    NNLMConfig,
    OptimizerConfig,
    ParallelConfig,
    RecordsConfig,
    RNNConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
    TransformerConfig,
    TranslationConfig,
)
from lmjax.data.store import preparation  # noqa: E402
from lmjax.run import build, feed  # noqa: E402
from lmjax.topology.collectives import collectives  # noqa: E402

SIZES: dict[str, Any] = {"width": 32, "heads": 4, "context": 32}
MODELS: dict[str, ModelConfig] = {
    "gpt": GPTConfig(layers=4, **SIZES, vocab_size=264),
    "llama": GPTConfig(
        layers=4,
        **SIZES,
        key_heads=2,
        vocab_size=264,
        norm="rmsnorm",
        positions="rotary",
        activation="swiglu",
        bias=False,
        tied=False,
        remat="full",
    ),
    "bert": BERTConfig(layers=2, **SIZES, vocab_size=96, dropout=0),
    "transformer": TransformerConfig(layers=1, **SIZES, vocab_size=264, dropout=0),
    "lstm": RNNConfig(cell="lstm", layers=2, width=32, context=32, dropout=0),
    "nnlm": NNLMConfig(order=3, width=16, hidden=32, context=32, dropout=0),
}
ALL = ("8x1x1x1", "1x8x1x1", "2x4x1x1", "pmap")
TENSOR = ("2x2x2x1", "1x1x4x1")
SEQUENCE = ("2x1x1x4", "1x2x2x2")
MESHES = {"gpt": ALL + TENSOR + SEQUENCE, "llama": (*ALL, "2x2x2x1", *SEQUENCE), "bert": ALL + TENSOR}
MESHES |= {"transformer": ALL + TENSOR, "lstm": ALL, "nnlm": ALL}
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "to", "red", "barn", "while", "rain", "fell"]


def config(model: str, folder: Path, parallel: ParallelConfig, updates: int) -> Config:
    """Two microbatches of eight rows an update. Adam's first moment is the gradient where it remembers no others.

    The rate is low enough that rounding does not grow: at 1e-2 it does, to 1e-4 within the 20 updates of the llama.
    """
    kind, text = MODELS[model].family, folder / "text.txt"
    if not text.exists():
        rng = random.Random(0)
        lines = (" ".join(rng.choice(WORDS) for _ in range(rng.randint(5, 40))) for _ in range(300))
        text.write_text("\n\n".join(lines) + "\n")
    pieces = TokenizerConfig(kind="wordpiece", vocab_size=80)
    common: dict[str, Any] = {"validation_fraction": 0.1, "cache": str(folder / "cache")}
    common["tokenizer"] = pieces if kind == "bert" else TokenizerConfig(kind="bytes")
    translated = RecordsConfig(limit=400, buckets=1, **common)
    tokens = 16 * MODELS[model].context * (2 if kind == "transformer" else 1)
    return Config(
        name=model,
        data=translated if kind == "transformer" else DataConfig(files=(str(text),), **common),
        model=MODELS[model],
        objective={"bert": MaskedConfig(), "transformer": TranslationConfig()}.get(kind, CausalConfig()),
        optimizer=OptimizerConfig(beta1=0.0),
        schedule=ScheduleConfig(peak=3e-3, warmup=0.1, unit="updates"),
        batch=BatchConfig(tokens=((0, tokens),), microbatch=8),
        train=TrainConfig(updates=updates),
        parallel=parallel,
    )


def parallel_of(mesh: str) -> ParallelConfig:
    """`2x4x1x1`, `pmap` or `one`."""
    if mesh == "pmap":
        return ParallelConfig(form="pmap", devices=8)
    data, fsdp, tensor, sequence = map(int, ("1x1x1x1" if mesh == "one" else mesh).split("x"))
    return ParallelConfig(mesh=MeshConfig(data, fsdp, tensor, sequence))


def trained(config: Config) -> tuple[np.ndarray, list[list[np.ndarray]], dict[str, float]]:
    """Losses and gradients of all updates, and what one device keeps and gathers."""
    run = build.build(config, preparation.prepare(config.data))
    state, batches = build.init(run), feed.device_batches(run, 0, 0)
    first = next(batches)
    update = build.update_function(run).lower(state, first.batch).compile()
    whole = pytrees.nbytes(state.params)
    sent = [used.size for used in collectives(update.as_text()) if used.kind == "all-gather"]
    made = build.init_function(run).lower().compile().memory_analysis()
    facts = {
        "parameters": kept(state.params) / whole,
        "optimizer": kept(state.opt_state) / pytrees.nbytes(state.opt_state),
        "initial": (made.output_size_in_bytes + made.temp_size_in_bytes) / pytrees.nbytes(state),
        "gathered": max(sent, default=0) / whole,
    }
    losses, gradients = [], []
    for fed in (first, *batches):
        state, metrics = update(state, fed.batch)
        losses.append(float(metrics["loss"]))
        gradients.append([np.asarray(leaf) for leaf in jax.tree.leaves(moments(state.opt_state))])
    return np.array(losses), gradients, facts


def moments(opt_state: Any) -> Any:
    """Adam's first moments."""
    return next(
        part.mu for part in jax.tree.leaves(opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu")
    )


def kept(tree: Any) -> int:
    """The bytes of a tree on the first device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def rows(models: list[str], meshes: list[str], updates: int) -> Iterator[dict[str, Any]]:
    """One row of the table after the other."""
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            one, ones, _ = trained(config(model, Path(folder), parallel_of("one"), updates))
            for mesh in (mesh for mesh in MESHES[model] if not meshes or mesh in meshes):
                losses, gradients, facts = trained(config(model, Path(folder), parallel_of(mesh), updates))
                apart = max(
                    max(float(np.abs(a - b).max()) for a, b in zip(mine, theirs, strict=True))
                    for mine, theirs in zip(ones, gradients, strict=True)
                )
                yield {
                    "model": model,
                    "mesh": mesh,
                    "loss": float(np.abs(losses - one).max()),
                    "gradient": apart,
                } | facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--meshes", default="", help="only these")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    options = parser.parse_args()
    print("| model | mesh | loss | gradient | parameters | optimizer | while made | largest gather |")
    print("|---|---|---|---|---|---|---|---|")
    found = []
    for row in rows(options.models.split(","), [mesh for mesh in options.meshes.split(",") if mesh], options.updates):
        found.append(row)
        shares = " | ".join(f"{row[name]:.3f}" for name in ("parameters", "optimizer", "initial", "gathered"))
        print(f"| {row['model']} | {row['mesh']} | {row['loss']:.1e} | {row['gradient']:.1e} | {shares} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
