"""Settings that must stand before JAX starts. Only the doors (train.py, the command line, notebooks) import this."""

import ctypes
import os
import sys

from lmjax.files import cache_folder

# malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD. Large values keep freed blocks, so that the temporaries of
# an update (tens of MB) are not mapped, zeroed and unmapped again at every update.
_MALLOC_OPTIONS = ((-1, 2**31 - 1), (-2, 256 * 2**20), (-3, 2**30))


def settings() -> dict[str, str]:
    """The environment that `prepare` sets where the user has not: names of environment variables to values."""
    # Programs that meet each other on the virtual devices of one CPU may all wait, each holding threads the others need.
    several = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    return {
        **({"JAX_CPU_ENABLE_ASYNC_DISPATCH": "false"} if several else {}),
        "JAX_COMPILATION_CACHE_DIR": str(cache_folder() / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "2",  # XLA's log: errors only
        "TOKENIZERS_PARALLELISM": "true",
    }


def prepare() -> None:
    """Sets the environment and the allocator. Call before JAX is imported; what the user has set stays."""
    assert "jax" not in sys.modules, "runtime.prepare() must run before jax is imported"
    for name, value in settings().items():
        os.environ.setdefault(name, value)
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from musl
        if mallopt is not None:
            for option, value in _MALLOC_OPTIONS:
                mallopt(option, value)
