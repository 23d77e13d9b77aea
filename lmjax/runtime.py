"""Settings that must stand before JAX starts. Only the doors (train.py, the command line, notebooks) import this."""

import ctypes
import glob
import importlib.util
import os
import sys
from collections.abc import Sequence

from lmjax.config import RuntimeConfig
from lmjax.files import cache_folder

# malloc.h: M_TRIM_THRESHOLD (never), M_TOP_PAD, M_MMAP_MAX (none). What an update frees stays for the next: else its
# temporaries, up to gigabytes, would be mapped, zeroed page by page and unmapped again every time.
_KEEP = ((-1, -1), (-2, 64 * 2**20), (-4, 0))
# M_ARENA_MAX: blocks above 64 MB are kept only in the first arena, which all threads then share.
_ONE_ARENA = ((-8, 1),)

_DEVICE_COUNT = "xla_force_host_platform_device_count"
_GPUS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, and either in WSL
_TPUS = ("/dev/accel*", "/dev/vfio/[0-9]*")


def settings(config: RuntimeConfig | None = None) -> dict[str, str]:
    """The environment that `prepare` sets where the user has not: names of environment variables to values.

    XLA_FLAGS is the exception: it is all the flags, those of the user, which stay, and before them ours with other
    names.
    """
    config = config or RuntimeConfig()
    flags = _flags(config)
    # Programs that meet each other on the virtual devices of one CPU may all wait, each with threads that others need.
    several = _DEVICE_COUNT in flags
    cached = config.compilation_cache != "off" or "JAX_COMPILATION_CACHE_DIR" in os.environ
    folder = os.path.abspath(os.path.expanduser(config.compilation_cache or cache_folder() / "compiled"))
    return {
        **({"XLA_FLAGS": flags} if flags else {}),
        **({"JAX_CPU_ENABLE_ASYNC_DISPATCH": "false"} if several else {}),
        **({"JAX_COMPILATION_CACHE_DIR": folder} if cached else {"JAX_ENABLE_COMPILATION_CACHE": "false"}),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "2",  # XLA's log: errors only
        "TOKENIZERS_PARALLELISM": "true",
    }


def _flags(config: RuntimeConfig) -> str:
    """XLA_FLAGS: of flags of one name the user's environment decides, then `xla_flags`, then our own."""
    ours = [f"--{_DEVICE_COUNT}={config.host_devices}"] if config.host_devices else []
    if _any_file(_GPUS) and os.environ.get("JAX_PLATFORMS") != "cpu":
        ours += config.gpu_flags
    theirs = os.environ.get("XLA_FLAGS", "").split()
    # Of what stands twice within one of the lists the last is taken, as XLA does.
    chosen = {flag.partition("=")[0]: flag for flag in (*ours, *config.xla_flags)}
    named = {flag.partition("=")[0] for flag in theirs}
    return " ".join([*(flag for name, flag in chosen.items() if name not in named), *theirs])


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


def prepare(config: RuntimeConfig | None = None) -> None:
    """Sets the environment and the allocator as a run asks for. Call before JAX is imported; what the user has set
    in the environment stays."""
    assert "jax" not in sys.modules, "runtime.prepare() must run before jax is imported"
    config = config or RuntimeConfig()
    if _only_compilers():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    found = settings(config)
    os.environ.update({name: flags for name, flags in found.items() if name == "XLA_FLAGS"})
    for name, value in found.items():
        os.environ.setdefault(name, value)
    if config.allocator != "system":
        _keep_memory((*_KEEP, *(_ONE_ARENA if config.allocator == "pool" else ())))


def _keep_memory(options: Sequence[tuple[int, int]]) -> None:
    """Has the C library (Linux, glibc) keep what is freed, unless the user has told it what to do."""
    told = [name for name in os.environ if name.startswith("MALLOC_")]
    if sys.platform == "linux" and not told and "malloc" not in os.environ.get("GLIBC_TUNABLES", ""):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from musl
        if mallopt is not None:
            for option, value in options:
                mallopt(option, value)


def _only_compilers() -> bool:
    """Whether JAX would look for TPUs or GPUs because a compiler for them is installed, although there are none."""
    modules = ("libtpu", "jax_cuda13_plugin", "jax_cuda12_plugin")
    return any(map(importlib.util.find_spec, modules)) and not _any_file((*_TPUS, *_GPUS))


def _any_file(patterns: Sequence[str]) -> bool:
    return any(map(glob.glob, patterns))
