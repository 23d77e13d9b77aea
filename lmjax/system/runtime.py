"""Settings that must precede the start of JAX.

Only the entry points (train.py, the command line, notebooks) import this module.
"""

import ctypes
import glob
import importlib.util
import json
import mmap
import os
import re
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence

from lmjax.config import RuntimeConfig, UserError
from lmjax.system.files import cache_folder
from lmjax.system.programs import check_programs

# malloc.h: M_TRIM_THRESHOLD (never), M_TOP_PAD, M_MMAP_MAX (none). The next update reuses the memory that an update
# frees. Otherwise the system would map, zero and unmap its temporaries, up to gigabytes, in every update.
_KEEP = ((-1, -1), (-2, 64 * 2**20), (-4, 0))
# M_ARENA_MAX: blocks above 64 MB are kept only in the first arena, which all threads then share.
_ONE_ARENA = ((-8, 1),)

# Settings of JAX that change the numbers of every run, with the value that lmjax computes with.
_NUMBERS = {"JAX_ENABLE_X64": "false", "JAX_DEFAULT_PRNG_IMPL": "threefry2x32", "JAX_THREEFRY_PARTITIONABLE": "true"}
_TRUTH: dict[str, str] = dict.fromkeys(("y", "yes", "t", "true", "on", "1"), "true")
_TRUTH |= dict.fromkeys(("n", "no", "f", "false", "off", "0"), "false")

_user_flags: set[str] = set()  # names in XLA_FLAGS before `prepare`
_DEVICE_COUNT = "xla_force_host_platform_device_count"
_GPUS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, and either in WSL
_TPUS = ("/dev/accel*", "/dev/vfio/[0-9]*")


def settings(config: RuntimeConfig | None = None) -> dict[str, str]:
    """Return the environment variables that `prepare` sets if the user has not.

    XLA_FLAGS is the exception: it contains the user's flags, preceded by lmjax's flags of other names.
    """
    config = config or RuntimeConfig()
    flags = _flags(config)
    # With asynchronous dispatch, concurrent programs on virtual devices of one CPU can deadlock over its threads.
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
    """Return XLA_FLAGS: the environment overrides `xla_flags`, which overrides the defaults."""
    own_flags = [f"--{_DEVICE_COUNT}={config.host_devices}"] if config.host_devices else []
    if _any_file(_GPUS) and os.environ.get("JAX_PLATFORMS") != "cpu":
        own_flags += config.gpu_flags
    user_flags = os.environ.get("XLA_FLAGS", "").split()
    # The last flag of a name within one list wins, as in XLA.
    chosen = {flag.partition("=")[0]: flag for flag in (*own_flags, *config.xla_flags)}
    named = {flag.partition("=")[0] for flag in user_flags}
    return " ".join([*(flag for name, flag in chosen.items() if name not in named), *user_flags])


def compile_only() -> None:
    """Set the environment of a process that compiles for absent devices, before `prepare`."""
    os.environ.update(
        {
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_COMPILATION_CACHE": "false",  # a program for absent devices cannot be read back
            "TPU_SKIP_MDS_QUERY": "1",  # the TPU compiler does not query the network for the machine,
            "TPU_WORKER_HOSTNAMES": "localhost",  # does not warn about missing host names,
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # and works in several processes
        }
    )


def prepare(config: RuntimeConfig | None = None) -> None:
    """Set the environment and the allocator of a run. Call it before JAX starts its backends.

    Variables that the user has set keep their values.
    """
    assert not _backends_started(), "runtime.prepare() must run before jax starts its backends"
    config = config or RuntimeConfig()
    if _only_compilers():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    environment = settings(config)
    if not config.compilation_cache and "JAX_COMPILATION_CACHE_DIR" not in os.environ and not _private_programs():
        environment.pop("JAX_COMPILATION_CACHE_DIR")
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    _user_flags.update(flag.partition("=")[0] for flag in os.environ.get("XLA_FLAGS", "").split())
    os.environ.update({name: flags for name, flags in environment.items() if name == "XLA_FLAGS"})
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    _update_jax(environment)
    if config.allocator != "system":
        _keep_memory((*_KEEP, *(_ONE_ARENA if config.allocator == "pool" else ())))


def start(config: RuntimeConfig | None = None) -> None:
    """Call `prepare`, or check the flags of a JAX that has started its backends; import JAX.

    From now on, each compiled program is compared with its hash before JAX executes it.

    Raises:
        UserError: JAX has started before, without flags that the configuration asks for; XLA does not know a flag or
            its value; or JAX has a setting that would change the numbers of the run.
    """
    _check_numbers()
    if not _backends_started():
        _check_flags([*os.environ.get("XLA_FLAGS", "").split(), *(config or RuntimeConfig()).xla_flags])
        prepare(config)
        check_programs()
        return
    check_programs()
    wanted = set((config or RuntimeConfig()).xla_flags)
    if config is not None and config.host_devices:
        wanted.add(f"--{_DEVICE_COUNT}={config.host_devices}")
    present = set(os.environ.get("XLA_FLAGS", "").split())
    # A variable that the user set before lmjax prepared has precedence.
    missing = {flag for flag in wanted - present if flag.partition("=")[0] not in _user_flags}
    if missing:
        raise UserError(
            f"runtime: JAX was started before lmjax could set XLA_FLAGS {' '.join(sorted(missing))}; call lmjax "
            "before the first computation with JAX, or set XLA_FLAGS in the environment"
        )


def _check_numbers() -> None:
    """Raise UserError if the environment or the program has set JAX to compute other numbers.

    A value that JAX does not know stays: JAX refuses it.
    """
    jax = sys.modules.get("jax")
    for name, value in _NUMBERS.items():
        if jax is not None:
            current = str(getattr(jax.config, name.lower(), value)).lower()
        else:
            current = os.environ.get(name, "").lower()
        current = _TRUTH.get(current, current)
        if current not in ("", value) and (current in _TRUTH or value not in _TRUTH):
            raise UserError(
                f"{name} = {current} would change the numbers of the run; lmjax computes with {value}: unset the "
                "environment variable, or remove the change of jax.config"
            )


def _check_flags(flags: Sequence[str]) -> None:
    """Raise UserError for a flag at which XLA would end the process."""
    for flag in flags:
        if not flag.startswith("--") and not os.path.isfile(flag):
            raise UserError(f"XLA_FLAGS: '{flag}' is neither a flag (--xla_name=value) nor a file with flags; unset it")
    names = {flag.removeprefix("--").partition("=")[0] for flag in flags if flag.startswith("--")}
    unknown = [name for name in sorted(names) if not _is_in_xla(name)]
    if unknown:
        raise UserError(
            f"XLA does not know the flag --{unknown[0]}; remove it from runtime.xla_flags or from the environment "
            "variable XLA_FLAGS"
        )
    _check_values(flags)


def _check_values(flags: Sequence[str]) -> None:
    """Raise UserError for a value that XLA cannot read, tried in another process."""
    if all(re.fullmatch(rf"--{_DEVICE_COUNT}=[0-9]{{1,4}}", flag) for flag in flags):
        return  # the usual case, without the time of a process
    environment = os.environ | {"XLA_FLAGS": " ".join(flags), "TF_CPP_MIN_LOG_LEVEL": "0"}
    program = "from jaxlib import xla_client; xla_client.make_cpu_client()"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    errors = done.stderr.decode(errors="replace")
    if match := re.search(r"Couldn't interpret value (.*) for flag (\S+)\.", errors):
        problem = f"XLA cannot read the value '{match[1]}' of the flag --{match[2]}"
    elif match := re.search(r"Unknown CPU ISA: (\S+)", errors):
        problem = f"XLA does not know the instruction set '{match[1]}' of the flag --xla_cpu_max_isa"
    else:
        return
    raise UserError(f"{problem}; correct it in runtime.xla_flags or in the environment variable XLA_FLAGS")


def _is_in_xla(name: str) -> bool:
    """Whether XLA's library contains the name of a flag; True if the library is elsewhere."""
    package = importlib.util.find_spec("jaxlib")
    folder = os.path.dirname(package.origin or "") if package else ""
    library = max(glob.glob(os.path.join(glob.escape(folder), "*.so")), key=os.path.getsize, default="")
    if not library:
        return True
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(f"\0{name}\0".encode()) != -1


def _private_programs() -> bool:
    """Create the default folder of compiled programs; return whether it is private.

    JAX executes what it finds there.
    """
    folder = cache_folder()
    compiled = folder / "compiled"
    try:
        compiled.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not hasattr(os, "getuid"):  # Windows
            return True
        statuses = [path.stat() for path in (folder, compiled)]
        private = all(s.st_uid in (0, os.getuid()) and not s.st_mode & stat.S_IWOTH for s in statuses)
        if private and statuses[1].st_uid == os.getuid() and statuses[1].st_mode & 0o077:
            compiled.chmod(0o700)
    except OSError as error:
        print(f"no compiled programs are kept: {compiled}: {error.strerror or error}", file=sys.stderr)
        return False
    if not private:
        print(
            f"no compiled programs are kept: {compiled} is not of this user, or others can write there; remove it, or "
            "set runtime.compilation_cache=FOLDER",
            file=sys.stderr,
        )
    return private


def _backends_started() -> bool:
    """Whether JAX has read XLA_FLAGS: at its first computation, not at its import."""
    bridge = sys.modules.get("jax._src.xla_bridge")  # no public function tells
    return bridge is not None and bridge.backends_are_initialized()


def _update_jax(environment: Mapping[str, str]) -> None:
    """Apply variables that JAX reads at its import, if a user's file has imported it already."""
    jax = sys.modules.get("jax")
    for name in environment:
        if jax is not None and name.startswith("JAX_"):
            value = os.environ[name]
            simple = re.fullmatch(r"true|false|-?[0-9.]+", value)
            jax.config.update(name.lower(), json.loads(value) if simple else value)


def _keep_memory(options: Sequence[tuple[int, int]]) -> None:
    """Make glibc keep freed memory, unless the user has configured its allocator."""
    configured = [name for name in os.environ if name.startswith("MALLOC_")]
    if sys.platform == "linux" and not configured and "malloc" not in os.environ.get("GLIBC_TUNABLES", ""):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from musl
        if mallopt is not None:
            for option, value in options:
                mallopt(option, value)


def _only_compilers() -> bool:
    """Whether a compiler for TPUs or GPUs is installed although there are no such devices."""
    modules = ("libtpu", "jax_cuda13_plugin", "jax_cuda12_plugin")
    return any(map(importlib.util.find_spec, modules)) and not _any_file((*_TPUS, *_GPUS))


def _any_file(patterns: Sequence[str]) -> bool:
    return any(map(glob.glob, patterns))
