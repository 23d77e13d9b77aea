"""The compiled plan: on CPU, and, where their compilers are installed, for TPUs and GPUs that are not there."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lmjax.config import ClassificationConfig, Config, MeshConfig, ParallelConfig, UserError
from lmjax.config.codec import apply_overrides
from lmjax.run import build
from lmjax.topology import chips, roofline, search
from lmjax.topology import compile as compiled
from lmjax.topology.collectives import Collective
from tests import ROOT, small

SMALL = [
    "model.vocab_size=256",
    "model.layers=2",
    "model.width=32",
    "model.heads=2",
    "model.context=64",
    "batch.tokens=((0, 2048),)",
    "batch.microbatch=8",
    "train.updates=10",
]


@pytest.fixture
def gpt() -> Config:
    return apply_overrides(Config(), SMALL)


def here(memory: float = 2**40) -> chips.Target:
    """The CPU that the tests run on, as a target with so much memory."""
    chip = chips.Chip("CPU", memory, 1e10, 1e9, 1e8, 1)
    devices = (jax.devices()[0],)
    return chips.Target("cpu:1", chip, devices, dict.fromkeys(devices, 0), {})


# ---- The search -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "first", "expected"),
    [
        (lambda m: 10 + m, 8, {8, 64, 128}),  # 74 of 100 fit, and 138 do not
        (lambda m: 40 + m, 256, {256, 32, 64}),  # from above; the line through the floor is too steep
        (lambda m: 1 + m / 100, 8, {8, 256}),  # all fit
        (lambda m: 1000 + m, 64, {64, 8}),  # nothing fits
        (lambda m: 10.0 + m if m < 64 else 200, 8, {8, 64, 32}),  # not linear
    ],
)
def test_the_search_compiles_few_times_and_ends_at_the_largest_that_fits(
    size: Callable[[int], float], first: int, expected: set[int]
) -> None:
    candidates = [8, 16, 32, 64, 128, 256]
    found = search.search(size, candidates, first=first, floor=10, limit=100, most=3)
    assert set(found) == expected
    best = max((m for m in found if found[m] <= 100), default=0)
    assert best == max((m for m in candidates if size(m) <= 100), default=0)


def test_without_a_search_only_the_microbatch_itself_is_compiled() -> None:
    assert search.search(float, [1, 2, 4], first=2, floor=0, limit=100, most=1) == {2: 2.0}


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("RESOURCE_EXHAUSTED: ... for HLO temporaries (24.71G) exceeds available HBM (15.75G).", 24.71 * 2**30),
        ("Ran out of memory in memory space hbm. Used 817.5M of 15.75G hbm. Exceeded ...", 817.5 * 2**20),
        ("INTERNAL: something else", None),
    ],
)
def test_what_a_program_needs_is_read_from_the_compilers_message(message: str, needed: float | None) -> None:
    assert compiled.needed_of(message) == needed


# ---- The roofline ---------------------------------------------------------------------------------------------------


def test_the_roofline_of_a_small_gpt_worked_out_by_hand(gpt: Config) -> None:
    made = build.without_data(replace(gpt, model=replace(gpt.model, remat="full")), devices=jax.devices()[:1])
    V, D, L, T, tokens, rows, count = 256, 32, 2, 64, 2048, 8, 4
    weights = 12 * L * D * D + V * D  # of products; the output layer is tied
    parameters = weights + T * D + L * 9 * D + (2 * L + 1) * 2 * D
    forward_and_backward = 6 * weights + 12 * L * D * T
    again = (forward_and_backward - 6 * V * D) / 3
    assert roofline.flops(made) == forward_and_backward * tokens
    assert roofline.flops(made, again=True) == pytest.approx((forward_and_backward + again) * tokens)

    sizes = compiled.registry.memory(made.config.model, rows)
    assert sizes["parameters"] == 4 * parameters
    each = 3 * 4 * parameters + 2 * (sizes["activations"] + sizes["logits"]) + 2 * 4 * parameters
    assert roofline.traffic(made) == pytest.approx(count * each + 2 * 3 * 4 * parameters)

    devices = tuple(SimpleNamespace(platform="tpu", device_kind="TPU v5e", process_index=0, id=i) for i in range(2))
    target = chips.Target("v5e:1x2", chips.CHIPS["v5e"], devices, {}, {})
    sent = [Collective("all-reduce", 1e9, 2, 3, False, ""), Collective("all-reduce", 1e9, 2, 1, True, "")]
    bounds = {bound.name: bound for bound in roofline.roofline(made, target, sent)}
    assert bounds["products"].seconds == pytest.approx(roofline.flops(made, again=True) / 197e12)
    assert bounds["memory"].seconds == pytest.approx(roofline.traffic(made) / 819e9)
    assert bounds["ICI"].seconds == pytest.approx(3e9 / 200e9)
    assert bounds["network"].seconds == pytest.approx(1e9 / 3.125e9)


# ---- Reports --------------------------------------------------------------------------------------------------------


GB = 10**9


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Programs of 100 GB, and 10 more for each row of the microbatch; the microbatches that were compiled."""
    made = []

    def compile_update(made_run: build.Run, target: chips.Target) -> compiled.Program:
        microbatch = made_run.config.batch.microbatch
        made.append(microbatch)
        if (100 + 10 * microbatch) * GB > target.limit:
            raise compiled.TooLarge((100 + 10 * microbatch) * GB)
        return compiled.Program(100 * GB, 10 * microbatch * GB, "ENTRY %main () -> f32[] {\n}\n")

    monkeypatch.setattr(compiled, "compile_update", compile_update)
    return made


def report(config: Config, memory: float, most: int) -> compiled.Report:
    return compiled.report(config, here(memory * GB), most=most, phase=lambda name: nullcontext())


def test_a_plan_says_what_fits_and_what_would(gpt: Config, linear: list[int]) -> None:
    found = report(gpt, 300, 3)
    titles = [table.title.split(",")[0] for table in found.tables]
    assert titles[:3] == ["Compiled for cpu:1", "Memory of a device", "Collectives of an update"]
    assert [(row[0], row[2]) for row in found.tables[-1].rows] == [
        ("8", "fits"),
        ("16", "fits"),
        ("32", "does not fit"),
    ]
    assert not found.problem

    assert report(gpt, 300, 2).tables[-1].rows[2][::2] == ("32", "does not fit, by extrapolation")

    linear.clear()
    found = report(gpt, 150, 3)  # 8 rows take 180, so 4 would fit: but the line through the floor says 2
    assert found.problem.startswith("does not fit: 167.6 GiB of 139.70 GiB on each CPU: try batch.microbatch=")
    assert found.problem.endswith(" (it fits)")
    assert len(linear) <= 3


def test_where_nothing_was_seen_to_fit_other_ways_are_named(gpt: Config, linear: list[int]) -> None:
    assert report(gpt, 1, 1).problem.endswith("try batch.microbatch=4 / model.remat=full")
    assert "try more devices (parameters and optimizer alone take" in report(gpt, 1e-6, 1).problem
    with pytest.raises(UserError, match=r"parallel\.form=mesh"):
        report(replace(gpt, parallel=ParallelConfig(form="pmap")), 1, 1)
    with pytest.raises(UserError, match=r"objective\.labels="):
        report(replace(gpt, objective=ClassificationConfig()), 1, 1)
    three = replace(gpt, parallel=ParallelConfig(mesh=MeshConfig(data=3)))
    with pytest.raises(UserError, match=r"needs 3 devices"):
        report(three, 1, 1)


@pytest.mark.slow
def test_a_compiled_update_needs_its_state_and_more(corpus: Path) -> None:
    made = small.build("nnlm", corpus)
    program = compiled.compile_update(made, here())
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(made.abstract_state))
    batch = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(made.abstract_batch))
    assert 0.9 * state <= program.arguments <= 1.1 * (state + batch)  # what is not used is no argument
    assert program.needed > program.arguments
    assert not compiled.collectives(program.text)


@pytest.mark.parametrize("name", ["nnlm", "lstm", "masked", "translation", "bert labels", "gpt labels"])
def test_a_blank_batch_is_shaped_like_a_real_one(corpus: Path, name: str) -> None:
    """But for records, which are shorter than the context."""
    samples = small.build(name, corpus).samples
    real, blank = small.rows(samples, 4), samples.blank(4)
    assert {key: (array.dtype, array.ndim) for key, array in real.items()} == {
        key: (array.dtype, array.ndim) for key, array in blank.items()
    }
    for key, array in real.items():
        assert all(np.less_equal(array.shape, blank[key].shape))
        assert array.shape == blank[key].shape or name in small.RECORDS


# ---- Other devices --------------------------------------------------------------------------------------------------

VIRTUAL = """
import jax
from jax import lax
from jax import numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from lmjax.topology.collectives import collectives

mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
at = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
whole = lambda w: lax.with_sharding_constraint(w, at())

def loss(w_LDD, x_BD):
    return jnp.sum(lax.scan(lambda x, w: (jnp.tanh(x @ whole(w)), None), x_BD, w_LDD)[0])

def update(w_LDD, x_BD, count):
    step = lambda i, w: w - lax.with_sharding_constraint(jax.grad(loss)(w, x_BD), at(None, "fsdp"))
    return lax.fori_loop(0, count, step, w_LDD)

w = jax.ShapeDtypeStruct((3, 64, 64), "float32", sharding=at(None, "fsdp"))
x = jax.ShapeDtypeStruct((16, 64), "float32", sharding=at(("data", "fsdp")))
count = jax.ShapeDtypeStruct((), "int32")
program = jax.jit(update, out_shardings=at(None, "fsdp")).lower(w, x, count).compile()
for c in collectives(program.as_text(), dynamic=5):
    print(c.kind, int(c.size), c.group, int(c.times), sep="\\t")
"""


def _run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    changed = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, *arguments], env=changed, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_a_program_of_eight_devices_gathers_each_layer_as_often_as_it_is_used() -> None:
    """3 layers of (64, 64), divided among 4; 5 rounds, whose number is known only when the program runs."""
    found = _run(["-c", VIRTUAL], XLA_FLAGS="--xla_force_host_platform_device_count=8", JAX_PLATFORMS="cpu")
    assert found.returncode == 0, found.stderr
    lines = [line.split("\t") for line in found.stdout.splitlines()]
    gathered = [(int(size), int(group), int(times)) for kind, size, group, times in lines if kind == "all-gather"]
    assert gathered
    assert set(gathered) == {(4 * 64 * 64, 4, 3 * 5)}  # forward, and backward if it is gathered again
    summed = [int(times) for kind, _, _, times in lines if kind in ("all-reduce", "reduce-scatter")]
    assert max(summed) in (3 * 5, 5)  # the gradient: of each layer, or of all at once


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the compiler for TPUs (extra plan-tpu)")
def test_a_plan_for_a_tpu_slice() -> None:
    words = ["-m", "lmjax", "plan", "llama_1b", "--no-search", "--topology", "v5e:4x4", "model.layers=2"]
    found = _run([*words, "batch.microbatch=16"])
    assert found.returncode == 0, found.stderr
    assert not found.stderr
    for text in ("16 x TPU v5e", "fsdp=16", "of 15.75 GiB", "all-gather", "ICI", "MFU, at most"):
        assert text in found.stdout

    found = _run([*words, "batch.microbatch=256", "model.remat=none"])
    assert found.returncode == 2
    assert found.stderr.startswith("error: does not fit: ")
    assert "of 15.75 GiB on each TPU v5e: try batch.microbatch=" in found.stderr
    assert "model.remat=full" in found.stderr
    assert found.stderr.count("\n") == 1

    found = _run(["-m", "lmjax", "plan", "quickstart", "--no-search", "--topology", "v5e:1x1", "model.vocab_size=4096"])
    assert found.returncode == 0, found.stderr
    assert "1 x TPU v5e" in found.stdout


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("jax_cuda13_plugin"), reason="needs the extra plan-gpu")
def test_a_plan_for_the_gpus_of_two_nodes() -> None:
    words = ["parallel.mesh=(data=2, fsdp=8)", "model.layers=2", "batch.microbatch=16"]
    found = _run(["-m", "lmjax", "plan", "llama_1b", "--no-search", "--topology", "h100:16", *words])
    assert found.returncode == 0, found.stderr
    assert not found.stderr
    for text in ("16 x NVIDIA H100 80GB HBM3 in 2 nodes", "reduce-scatter", "between slices or nodes", "NVLink"):
        assert text in found.stdout
