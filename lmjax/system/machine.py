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

from lmjax.system import accelerators


def xla_flags() -> str:
    """Return the XLA flags of this process, sorted, without the number of virtual devices."""
    return " ".join(sorted(flag for flag in os.environ.get("XLA_FLAGS", "").split() if "_device_count=" not in flag))


# ---- Speed ------------------------------------------------------------------------------------------------------


def peak_flops(dtype: str = "float32", *, devices: Sequence[Any] | None = None, again: bool = False) -> float:
    """Return the peak FLOP/s of the devices together in matrix products.

    The default is all devices. The result is NaN if one is unknown.

    Accelerators: the data sheet's dense bf16 number for any `dtype`. CPU: measured with inputs of `dtype` (float32 or
    bfloat16), once a process unless `again`. Virtual devices of one CPU share its cores: they count once per process.
    """
    if again:
        _measure.cache_clear()
    devices = jax.devices() if devices is None else list(devices)
    hosts = {device.process_index for device in devices if device.platform == "cpu"}
    measured = _measure(dtype) * len(hosts) if hosts else 0.0
    return measured + sum(accelerators.find(device.device_kind).peak for device in devices if device.platform != "cpu")


@functools.cache
def _measure(dtype: str, size: int = 1024, seconds: float = 0.1) -> float:
    """Measure the best FLOP/s of products of two size x size matrices on the CPU.

    The result of a product is float32.
    """

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
    """Return the bytes of memory of the machine, or the container's limit."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    return min([total, *_container_numbers("memory.max", "memory/memory.limit_in_bytes")])


def available_memory() -> int | None:
    """Return the bytes that are available without swapping; None if unknown.

    A container's limit counts.
    """
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
    """Return the known `peak`, `used` and `limit` of a device's memory; empty on a CPU."""
    stats = (device or jax.local_devices()[0]).memory_stats() or {}
    names = {"peak": "peak_bytes_in_use", "used": "bytes_in_use", "limit": "bytes_limit"}
    return {name: int(stats[key]) for name, key in names.items() if key in stats}


def _container_numbers(*names: str) -> list[int]:
    """Return a list with the number in the first of these cgroup files that has one."""
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
    """Describe the machine in one line: `CPU: AMD EPYC 7B13, 2 cores, 24 GB, jax 0.10.2`."""
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
