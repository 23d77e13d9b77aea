"""Settings that must stand before JAX starts. Only the doors (train.py, the command line, notebooks) import this."""

import ctypes
import glob
import importlib.util
import os
import sys

from lmjax.files import cache_folder

# malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD. Large values keep freed blocks, so that the temporaries of
# an update (tens of MB) are not mapped, zeroed and unmapped again at every update.
_MALLOC_OPTIONS = ((-1, 2**31 - 1), (-2, 256 * 2**20), (-3, 2**30))


def settings() -> dict[str, str]:
    """The environment that `prepare` sets where the user has not: names of environment variables to values."""
    # Programs that meet each other on the virtual devices of one CPU may all wait, each with threads that others need.
    several = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    return {
        **({"JAX_CPU_ENABLE_ASYNC_DISPATCH": "false"} if several else {}),
        "JAX_COMPILATION_CACHE_DIR": str(cache_folder() / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "2",  # XLA's log: errors only
        "TOKENIZERS_PARALLELISM": "true",
    }


def compile_only() -> None:
    """Sets the environment of a process that compiles for devices that are not there. Call before `prepare`."""
    os.environ.update(
        {
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_COMPILATION_CACHE": "false",  # a program for devices that are not there cannot be read back
            "TPU_SKIP_MDS_QUERY": "1",  # the compiler for TPUs does not ask the network what machine this is,
            "TPU_WORKER_HOSTNAMES": "localhost",  # nor does it complain that nothing tells
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nor does a second process find it taken
        }
    )


def prepare() -> None:
    """Sets the environment and the allocator. Call before JAX is imported; what the user has set stays."""
    assert "jax" not in sys.modules, "runtime.prepare() must run before jax is imported"
    if _only_compilers():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for name, value in settings().items():
        os.environ.setdefault(name, value)
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from musl
        if mallopt is not None:
            for option, value in _MALLOC_OPTIONS:
                mallopt(option, value)


def _only_compilers() -> bool:
    """Whether JAX would look for TPUs or GPUs because a compiler for them is installed, although there are none."""
    modules = ("libtpu", "jax_cuda13_plugin", "jax_cuda12_plugin")
    devices = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/dxg")
    return any(map(importlib.util.find_spec, modules)) and not any(map(glob.glob, devices))
