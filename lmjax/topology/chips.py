"""Chips that a program can be compiled for without their presence.

A topology is written `v5e:8x8` (a TPU slice), `2*v5e:8x8` (two slices, joined by the data-centre network), `h100:8`
(the GPUs of a node) or `h100:32` (nodes of 8).
"""

import importlib.util
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from lmjax.config import UserError
from lmjax.system import accelerators
from lmjax.system.extras import missing

#: GPUs of a node.
GPUS = 8
#: Environment variable with the share of a GPU's memory that JAX may use (default 0.75).
MEMORY_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"


class Chip(NamedTuple):
    """Memory and speed of one JAX device."""

    #: Name of the product.
    name: str
    #: Bytes of memory that programs can use.
    memory: float
    #: Bytes per second between memory and processor.
    bandwidth: float
    #: Bytes per second, one way, over all links to the devices of the same slice or node.
    near: float
    #: Bytes per second, one way, to the network between slices or nodes.
    far: float
    #: Largest number of chips of a slice or node.
    most: int
    #: For a GPU: the remaining properties that the compiler needs.
    target: str = ""

    @property
    def is_tpu(self) -> bool:
        """Whether the chip is a TPU; if not, it is a GPU."""
        return not self.target


def _tpu(name: str, *, most: int) -> Chip:
    chip = accelerators.find(name)
    return Chip(name, chip.memory, chip.bandwidth, chip.near, chip.far, most)


def _gpu(name: str, *, capability: tuple[int, int], **sizes: Any) -> Chip:
    """Return a GPU; its target is a GpuTargetConfigProto of XLA in text form."""
    chip = accelerators.find(name)
    common = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2048,
        "shared_memory_per_block": 49152,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "device_memory_size": int(chip.memory),
        "memory_bandwidth": int(chip.bandwidth),
    }
    major, minor = capability
    info = " ".join(f"{key}: {value}" for key, value in (common | sizes).items())
    versions = "dnn_version_info { major: 9 minor: 12 } runtime_version { major: 13 }"
    target = (
        f"gpu_device_info {{ {info} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
        f'platform_name: "CUDA" {versions} device_description_str: "{name}"'
    )
    return Chip(name, chip.memory, chip.bandwidth, chip.near, chip.far, GPUS, target)


_AMPERE = {"core_count": 108, "fpus_per_core": 64, "clock_rate_ghz": 1.41, "l2_cache_size": 40 * 2**20}
_HOPPER = {"core_count": 132, "fpus_per_core": 128, "clock_rate_ghz": 1.98, "l2_cache_size": 50 * 2**20}
_BLACKWELL = {"core_count": 148, "fpus_per_core": 128, "clock_rate_ghz": 1.965, "l2_cache_size": 132_644_864}
_SMALL = {"shared_memory_per_core": 164 * 2**10, "shared_memory_per_block_optin": 163 * 2**10}
_LARGE = {"shared_memory_per_core": 228 * 2**10, "shared_memory_per_block_optin": 227 * 2**10}
# The same for consumer Ampere (8.6) and Ada (8.9).
_ADA = {"fpus_per_core": 128, "threads_per_core_limit": 1536}
_ADA |= {"shared_memory_per_core": 100 * 2**10, "shared_memory_per_block_optin": 99 * 2**10}
_TURING = {"fpus_per_core": 64, "threads_per_core_limit": 1024}
_TURING |= {"shared_memory_per_core": 64 * 2**10, "shared_memory_per_block_optin": 64 * 2**10}

# Sizes of the processors: the CUDA C++ programming guide, table of technical specifications per compute capability, and
# what the devices report.
CHIPS = {
    "v4": _tpu("TPU v4", most=4096),
    "v5e": _tpu("TPU v5e", most=256),
    "v5p": _tpu("TPU v5p", most=8960),
    "v6e": _tpu("TPU v6e", most=256),
    "a100": _gpu("NVIDIA A100-SXM4-80GB", capability=(8, 0), **_AMPERE, **_SMALL),
    "h100": _gpu("NVIDIA H100 80GB HBM3", capability=(9, 0), **_HOPPER, **_LARGE),
    "h200": _gpu("NVIDIA H200", capability=(9, 0), **_HOPPER, **_LARGE),
    "b200": _gpu("NVIDIA B200", capability=(10, 0), **_BLACKWELL, **_LARGE),
    "l40s": _gpu(
        "NVIDIA L40S", capability=(8, 9), core_count=142, clock_rate_ghz=2.52, l2_cache_size=96 * 2**20, **_ADA
    ),
    "l4": _gpu("NVIDIA L4", capability=(8, 9), core_count=58, clock_rate_ghz=2.04, l2_cache_size=48 * 2**20, **_ADA),
    "rtx4090": _gpu(
        "NVIDIA GeForce RTX 4090",
        capability=(8, 9),
        core_count=128,
        clock_rate_ghz=2.52,
        l2_cache_size=72 * 2**20,
        **_ADA,
    ),
    "a10g": _gpu("NVIDIA A10G", capability=(8, 6), core_count=80, clock_rate_ghz=1.71, l2_cache_size=6 * 2**20, **_ADA),
    "t4": _gpu("Tesla T4", capability=(7, 5), core_count=40, clock_rate_ghz=1.59, l2_cache_size=4 * 2**20, **_TURING),
}
# The compiler finds no tiles for some products on these, if it cannot measure kernels.
_SMALL_TILES = ("l40s", "l4", "rtx4090", "a10g", "t4")
_HOST = 4  # chips
EXAMPLES = "v5e:1x1, v5e:8x8, v5p:2x2x4, v6e:4x4, 2*v5e:16x16, h100:8"


@dataclass(frozen=True)
class Target:
    """The devices to compile for."""

    #: The topology as the user wrote it.
    topology: str
    #: The chip of every device.
    chip: Chip
    #: The devices themselves.
    devices: tuple[Any, ...]
    #: Number of the slice or node of each device.
    islands: dict[Any, int]
    #: Options of the compiler.
    options: dict[str, Any]

    @property
    def limit(self) -> float:
        """Bytes that a program can use on a device."""
        return self.chip.memory * (1.0 if self.chip.is_tpu else float(os.environ.get(MEMORY_FRACTION, "0.75")))


def parse(topology: str) -> tuple[str, int, tuple[int, ...]]:
    """Parse a topology: the chip's key, the number of slices or nodes, their shape.

    Raises:
        UserError: There is no such topology.
    """
    match = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)", topology.strip().lower())
    if not match or match[2] not in CHIPS:
        raise UserError(f"--topology {topology}: write CHIP:SIZE as in {EXAMPLES}; chips: {', '.join(CHIPS)}")
    chip, count, shape = CHIPS[match[2]], int(match[1] or 1), tuple(map(int, match[3].split("x")))
    size = 1
    for length in shape:
        size *= length
    if not chip.is_tpu and count == 1 and len(shape) == 1 and size > chip.most and size % chip.most == 0:
        count, shape, size = size // chip.most, (chip.most,), chip.most
    if not count or not 0 < size <= chip.most or (not chip.is_tpu and len(shape) > 1):
        size_rule = (
            f"a slice has up to {chip.most} chips" if chip.is_tpu else f"a node has 1 to {GPUS} GPUs, or nodes of 8"
        )
        raise UserError(f"--topology {topology}: of {match[2]} {size_rule}, as in {EXAMPLES}")
    return match[2], count, shape


def target(topology: str) -> Target:
    """Return the devices of a topology.

    Raises:
        UserError: There is no such topology, or its compiler is not installed.
    """
    key, count, shape = parse(topology)
    chip = CHIPS[key]
    make: Callable[..., Any] = _tpus if chip.is_tpu else _gpus
    extra, modules = (
        ("plan-tpu", ["libtpu"]) if chip.is_tpu else ("plan-gpu", ["jax_cuda13_plugin", "jax_cuda12_plugin"])
    )
    if not any(map(importlib.util.find_spec, modules)):
        raise missing(f"--topology {topology}", f"the compiler of {chip.name}", extra)
    devices = tuple(make(chip, key, count, shape))
    island = "slice_index" if chip.is_tpu else "process_index"
    # There is no GPU to measure kernels on.
    options: dict[str, Any] = {} if chip.is_tpu else {"xla_gpu_autotune_level": "0"}
    if key in _SMALL_TILES:
        options["xla_gpu_enable_triton_gemm"] = False
    return Target(topology, chip, devices, {device: getattr(device, island, 0) or 0 for device in devices}, options)


def _tpus(chip: Chip, key: str, count: int, shape: tuple[int, ...]) -> Any:
    import jax
    from jax.experimental import topologies

    name = f"{key}:{'x'.join(map(str, shape))}"
    settings: dict[str, Any] = {"chip_config_name": "megacore"} if key == "v4" else {}  # one device a chip
    if math.prod(shape) < _HOST:  # a part of a host
        settings["chips_per_host_bounds"] = (*shape, 1, 1)[:3]
    if count > 1:
        settings["num_slices"] = count
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **settings).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--topology {name}: {str(error).splitlines()[0]}; write one as in {EXAMPLES}") from None


def _gpus(chip: Chip, key: str, count: int, shape: tuple[int, ...]) -> Any:
    from jax.experimental import topologies

    where = f"1x{count}x{shape[0]}"
    return topologies.get_topology_desc(key, platform="cuda", target_config=chip.target, topology=where).devices
