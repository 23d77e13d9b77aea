"""Properties of the machine: peak speed of its devices, memory, and a description."""

import functools
import importlib
import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Dense bf16 matrix products (f16 where there is no bf16), FLOP/s of one JAX device, by a word of its `device_kind`.
# NVIDIA quotes most tensor-core numbers with 2:4 sparsity; the dense numbers are half of these.
PEAKS = {
    # cloud.google.com/tpu/docs/system-architecture-tpu-vm and the page of each version; a v2 or v3 chip (45 and
    # 123 TFLOP/s) and a TPU7x chip (2307) are two JAX devices each, the others one
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4 lite": 138e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    # NVIDIA's data sheets of GB200 NVL72 (360 PFLOP/s sparse for 72), HGX B200 (36 sparse for 8), H200, H100, A100,
    # L40S, L4, A10, A10G, RTX A6000, V100 and T4
    "GB200": 2500e12,
    "B200": 2250e12,
    "H200": 989.5e12,
    "H100 PCIe": 756.5e12,
    "H100 NVL": 835.5e12,
    "H100": 989.5e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "A10G": 70e12,
    "RTX A6000": 154.8e12,
    "V100": 125e12,
    "T4": 65e12,
    # NVIDIA's architecture white papers (Blackwell, Ada, Ampere GA102), appendix A: bf16 with f32 accumulation
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}


def xla_flags() -> str:
    """Return the XLA flags of this process in alphabetical order, without the number of virtual devices."""
    return " ".join(sorted(flag for flag in os.environ.get("XLA_FLAGS", "").split() if "_device_count=" not in flag))


# ---- Speed ------------------------------------------------------------------------------------------------------


def peak_flops(dtype: str = "float32", *, devices: Sequence[Any] | None = None) -> float:
    """Return the peak FLOP/s of the devices (default: all) together in matrix products; NaN if one is unknown.

    Accelerators: the data sheet's dense bf16 number for any `dtype`. CPU: measured with inputs of `dtype` (float32 or
    bfloat16). Virtual devices of one CPU share its cores, so they count once per process.
    """
    devices = jax.devices() if devices is None else list(devices)
    hosts = {device.process_index for device in devices if device.platform == "cpu"}
    measured = _measure(dtype) * len(hosts) if hosts else 0.0
    return measured + sum(_listed(device.device_kind) for device in devices if device.platform != "cpu")


def _listed(device_kind: str) -> float:
    """Return the table's entry for a device; the longest name that matches complete words wins."""
    names = [name for name in PEAKS if re.search(rf"\b{re.escape(name)}\b", device_kind, re.IGNORECASE)]
    return PEAKS[max(names, key=len)] if names and "Laptop" not in device_kind else float("nan")


@functools.cache
def _measure(dtype: str, size: int = 1024, seconds: float = 0.1) -> float:
    """Measure the best FLOP/s of products of two size x size matrices with float32 result on the CPU."""

    @jax.jit
    def product(a, b):
        return jax.lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    cpu = jax.local_devices(backend="cpu")[0]
    with jax.transfer_guard("allow"):
        a = jax.device_put(np.full((size, size), 0.5, jnp.dtype(dtype)), cpu)
        product(a, a).block_until_ready()
        best, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end:
            begun = time.perf_counter()
            product(a, a).block_until_ready()
            best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


# ---- Memory -----------------------------------------------------------------------------------------------------


def peak_memory() -> int | None:
    """Return the peak memory of this process in bytes; None if the system does not report it."""
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux KiB


def total_memory() -> int | None:
    """Return the bytes of memory that this process may use: those of the machine, or the container's limit."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    return min([total, *_container_numbers("memory.max", "memory/memory.limit_in_bytes")])


def available_memory() -> int | None:
    """Return the bytes that are available without swapping, within the container's limit; None if unknown."""
    try:
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    if not match:
        return None
    free = 1024 * int(match[1])
    limit = _container_numbers("memory.max", "memory/memory.limit_in_bytes")
    used = _container_numbers("memory.current", "memory/memory.usage_in_bytes")
    # The page cache counts as used here, so the number of a container is conservative.
    return min([free, *(max(most - now, 0) for most, now in zip(limit, used, strict=False))])


def device_memory(device: Any = None) -> dict[str, int]:
    """Return the known `peak`, `used` and `limit` of a device's own memory in bytes; empty on a CPU."""
    stats = (device or jax.local_devices()[0]).memory_stats() or {}
    names = {"peak": "peak_bytes_in_use", "used": "bytes_in_use", "limit": "bytes_limit"}
    return {name: int(stats[key]) for name, key in names.items() if key in stats}


def _container_numbers(*names: str) -> list[int]:
    """Return a list with the number in the first of these cgroup files (version 2, then 1) that has one."""
    for name in names:
        try:
            return [int(Path("/sys/fs/cgroup", name).read_text())]
        except (OSError, ValueError):  # ValueError: "max", no limit
            continue
    return []


# ---- Description ------------------------------------------------------------------------------------------------


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        count = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return count


def describe() -> str:
    """Describe the machine in one line, such as `CPU: AMD EPYC 7B13, 2 cores, 24 GB, jax 0.10.2`."""
    parts = [_devices(jax.devices())] if jax.default_backend() != "cpu" else []
    total = total_memory()
    memory = [f"{total / 1e9:.0f} GB"] if total else []
    return ", ".join([*parts, f"CPU: {_processor()}", f"{cores()} cores", *memory, f"jax {jax.__version__}"])


def _devices(devices: Iterable[Any]) -> str:
    kinds = [device.device_kind for device in devices]
    counts = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    limit = device_memory().get("limit")
    return counts + (f" ({limit / 1e9:.0f} GB each)" if limit else "")


def _processor() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    name = match[1] if match else platform.processor() or platform.machine()
    return re.sub(r"\((R|TM)\)| CPU| Processor| @.*|\d+-Core", "", name).strip()
