"""The settings that stand before JAX starts: set where the user has not, visible, and in time."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from lmjax.config import Config, DataConfig, RuntimeConfig, SourceConfig, UserError, codec
from lmjax.config.checks import check
from lmjax.journal import history
from lmjax.run import identity
from lmjax.system import runtime
from tests import ROOT

COUNT = "--xla_force_host_platform_device_count"
SCRIPT = """
import json, os, sys
from lmjax.system import runtime
runtime.prepare()
assert "jax" not in sys.modules
import jax
print(json.dumps([jax.config.jax_compilation_cache_dir, os.environ["TOKENIZERS_PARALLELISM"]]))
jax.devices()
try:
    runtime.prepare()
except AssertionError:
    print("too late")
"""


def test_settings_reach_jax_and_the_users_own_stay(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    environment["TOKENIZERS_PARALLELISM"] = "false"
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=True)
    first, second = done.stdout.splitlines()
    assert json.loads(first) == [str(tmp_path / "lmjax" / "compiled"), "false"]
    assert second == "too late"


def test_settings_reach_a_jax_that_is_imported_and_not_started(tmp_path: Path) -> None:
    """A user's configuration file imports JAX before the runtime settings are known."""
    script = (
        "import jax, flax\nfrom lmjax.config import RuntimeConfig\nfrom lmjax.system import runtime\n"
        f"runtime.start(RuntimeConfig(host_devices=3, compilation_cache='{tmp_path}'))\n"
        "print(jax.device_count(), jax.config.jax_compilation_cache_dir, "
        "jax.config.jax_persistent_cache_min_compile_time_secs)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "XLA_FLAGS"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["3", str(tmp_path), "0.1"]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which nobody has set anything, on a machine without GPUs."""
    for name in ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(runtime.glob, "glob", lambda pattern: [])
    return monkeypatch


def test_of_flags_with_one_name_the_environment_decides(bare: pytest.MonkeyPatch) -> None:
    config = RuntimeConfig(host_devices=4, xla_flags=("--xla_a=1", "--xla_b=1", "--xla_a=2"))
    assert runtime.settings(config)["XLA_FLAGS"] == f"{COUNT}=4 --xla_a=2 --xla_b=1"
    bare.setenv("XLA_FLAGS", f"--xla_b=7 {COUNT}=2")
    assert runtime.settings(config)["XLA_FLAGS"] == f"--xla_a=2 --xla_b=7 {COUNT}=2"


def test_without_a_word_about_flags_none_are_set(bare: pytest.MonkeyPatch) -> None:
    found = runtime.settings()
    assert "XLA_FLAGS" not in found
    assert "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in found
    assert runtime.settings(RuntimeConfig(host_devices=2))["JAX_CPU_ENABLE_ASYNC_DISPATCH"] == "false"


def test_flags_for_gpus_are_for_gpus(bare: pytest.MonkeyPatch) -> None:
    bare.setattr(runtime.glob, "glob", lambda pattern: ["/dev/nvidia0"] if "nvidia" in pattern else [])
    assert runtime.settings()["XLA_FLAGS"] == " ".join(RuntimeConfig().gpu_flags)
    bare.setenv("JAX_PLATFORMS", "cpu")
    assert "XLA_FLAGS" not in runtime.settings()


def test_compiled_programs_are_kept_where_a_run_says(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare.chdir(tmp_path)
    assert runtime.settings(RuntimeConfig(compilation_cache="here"))["JAX_COMPILATION_CACHE_DIR"] == f"{tmp_path}/here"
    off = RuntimeConfig(compilation_cache="off")
    assert runtime.settings(off)["JAX_ENABLE_COMPILATION_CACHE"] == "false"
    bare.setenv("JAX_COMPILATION_CACHE_DIR", "there")
    assert "JAX_ENABLE_COMPILATION_CACHE" not in runtime.settings(off)
    kept = identity.absolute(Config(runtime=RuntimeConfig(compilation_cache="here"))).runtime
    assert kept.compilation_cache == f"{tmp_path}/here"
    assert identity.absolute(Config(runtime=off)).runtime == off


def test_names_of_files_are_those_of_the_folder_of_the_start(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare.chdir(tmp_path)
    (tmp_path / "odd:").mkdir()
    (tmp_path / "odd:" / "c.txt").touch()
    names = ("a.txt", "s3://bucket/b.txt", "odd:/c.txt", " ")
    data = DataConfig(files=names, cache="prepared", mixture=(SourceConfig(files=("a.txt",)),))
    absolute = identity.absolute(Config(data=data)).data
    assert absolute.files == (f"{tmp_path}/a.txt", "s3://bucket/b.txt", f"{tmp_path}/odd:/c.txt", " ")
    assert absolute.cache == f"{tmp_path}/prepared"
    assert isinstance(absolute, DataConfig)
    assert absolute.mixture[0].files == (f"{tmp_path}/a.txt",)
    assert identity.absolute(Config(data=DataConfig(cache="s3://bucket"))).data.cache == "s3://bucket"
    assert identity.absolute(Config()).data.cache == ""


FLAGS = """
from lmjax.system import runtime
from lmjax.config import RuntimeConfig
config = RuntimeConfig()
runtime.prepare(RuntimeConfig(host_devices=2, xla_flags=config.gpu_flags))
import jax
print(jax.device_count(), jax.jit(lambda x: x @ x)(jax.numpy.ones((2, 2)))[0, 0])
"""


def test_xla_knows_our_flags() -> None:
    """One that it does not know ends the process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run([sys.executable, "-c", FLAGS], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "2 2.0\n"


@pytest.mark.parametrize("flag", ["xla_cpu_use_onednn", "--xla_a=1 --xla_b=1", "--jax_x=1", ""])
def test_what_is_no_flag_is_refused(flag: str) -> None:
    with pytest.raises(UserError, match="must be a flag like --xla_name=value"):
        check(Config(runtime=RuntimeConfig(xla_flags=(flag,))))


def test_the_library_is_told_to_keep_memory_unless_the_user_or_the_run_says_otherwise(bare: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda *option: told.append(option))
    bare.setattr(runtime, "sys", SimpleNamespace(platform="linux", modules={}))
    bare.setattr(runtime.ctypes, "CDLL", lambda name: library)
    bare.setattr(runtime.os, "environ", {})
    runtime.prepare(RuntimeConfig(allocator="system"))
    assert not told
    runtime.prepare()
    assert told == [(-1, -1), (-2, 64 << 20), (-4, 0), (-8, 1)]
    runtime.prepare(RuntimeConfig(allocator="keep"))
    assert len(told) == 7
    for name, value in (("MALLOC_TRIM_THRESHOLD_", "1"), ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")):
        bare.setattr(runtime.os, "environ", {name: value})
        runtime.prepare()
    assert len(told) == 7


KEPT = """
import ctypes, resource, sys, threading
from lmjax.system import runtime
from lmjax.config import RuntimeConfig
runtime.prepare(RuntimeConfig(allocator=sys.argv[1]))
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
def use():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = library.malloc(256 << 20)
        ctypes.memset(block, 1, 256 << 20)
        library.free(block)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=use)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
@pytest.mark.parametrize("allocator", ["pool", pytest.param("keep", marks=pytest.mark.slow), "system"])
def test_only_a_pool_gives_a_thread_a_large_block_again_without_new_pages(allocator: str) -> None:
    environment = {
        name: value for name, value in os.environ.items() if "MALLOC" not in name and name != "GLIBC_TUNABLES"
    }
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", KEPT, allocator]
    pages = int(subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout)
    # 256 MB are 65,536 pages of 4 kB, or 128 of 2 MB where the system gives these.
    assert pages < 64 if allocator == "pool" else pages >= 128


def test_a_run_of_before_these_keys_goes_on_and_takes_others(bare: pytest.MonkeyPatch) -> None:
    tree = json.loads(codec.to_json(Config()))
    del tree["runtime"]
    old = codec.from_json(json.dumps(tree), Config)
    assert old == Config()
    changed = identity.allowed_changes(old, Config(runtime=RuntimeConfig(host_devices=2, allocator="system")), ())
    assert len(changed) == 2
    assert not history.learnt(changed)


def test_flags_are_of_the_machine_and_their_absence_is_none() -> None:
    before = {"jax": "1", "devices": 1}
    assert history.machine_of(before) == history.machine_of(before | {"xla_flags": ""})
    assert history.machine_of(before) != history.machine_of(before | {"xla_flags": "--xla_a=1"})
    assert history.machine_of(before) == history.machine_of(before | {"updates_at_once": 1})
    assert history.machine_of(before) != history.machine_of(before | {"updates_at_once": 8})


def test_a_compiler_without_its_devices_does_not_make_jax_look_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    installed, present = set(), set()
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(runtime.glob, "glob", lambda pattern: sorted(present & {pattern}))
    assert not runtime._only_compilers()
    installed.add("libtpu")
    assert runtime._only_compilers()
    present.add("/dev/vfio/[0-9]*")  # a TPU
    assert not runtime._only_compilers()


# ---- The folder of compiled programs ---------------------------------------------------------------------------------


def cached(bare: pytest.MonkeyPatch, folder: Path) -> str | None:
    """The folder of compiled programs that a start with this cache folder chooses; None for none."""
    environment = {"XDG_CACHE_HOME": str(folder)}
    bare.setattr(runtime.os, "environ", environment)
    bare.setattr(runtime, "_update_jax", lambda environment: None)
    bare.setattr(runtime, "_backends_started", lambda: False)
    runtime.prepare(RuntimeConfig(allocator="system"))
    assert ("JAX_COMPILATION_CACHE_DIR" in environment) != ("JAX_ENABLE_COMPILATION_CACHE" in environment)
    return environment.get("JAX_COMPILATION_CACHE_DIR")


def test_the_folder_of_compiled_programs_is_private(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cached(bare, tmp_path) == str(tmp_path / "lmjax" / "compiled")
    assert (tmp_path / "lmjax" / "compiled").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("shared", ["lmjax", "lmjax/compiled"])
def test_programs_that_others_can_write_are_not_executed(
    shared: str, bare: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lmjax" / "compiled").mkdir(parents=True)
    (tmp_path / shared).chmod(0o777)
    assert cached(bare, tmp_path) is None
    error = capsys.readouterr().err
    assert "or others can write there" in error
    assert error.count("\n") == 1


def test_programs_of_another_user_are_not_executed(
    bare: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lmjax" / "compiled").mkdir(parents=True)
    bare.setattr(runtime.os, "getuid", lambda: 12345)
    if os.stat(tmp_path).st_uid == 0:  # root's files are those of the system
        os.chown(tmp_path / "lmjax" / "compiled", 54321, -1)
    assert cached(bare, tmp_path) is None
    assert "is not of this user" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_none(
    bare: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lmjax").write_text("no folder")
    assert cached(bare, tmp_path) is None
    assert "no compiled programs are kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--xla_of_no_version=1", "XLA does not know the flag --xla_of_no_version"),
        ("xla_cpu_max_isa=AVX2", "is neither a flag"),
        pytest.param(
            "--xla_cpu_enable_fast_math=maybe",
            "XLA cannot read the value 'maybe' of the flag --xla_cpu_enable_fast_math; correct it",
            marks=pytest.mark.slow,
        ),
        pytest.param("--xla_force_host_platform_device_count=two", "value 'two' of the flag", marks=pytest.mark.slow),
        pytest.param("--xla_cpu_max_isa=NO", "does not know the instruction set 'NO'", marks=pytest.mark.slow),
        ("--xla_cpu_max_isa=AVX2 --xla_force_host_platform_device_count=2", ""),
    ],
)
def test_flags_at_which_xla_would_end_the_process_are_refused(flags: str, message: str) -> None:
    if message:
        with pytest.raises(UserError, match=message):
            runtime._check_flags(flags.split())
    else:
        runtime._check_flags(flags.split())


@pytest.mark.parametrize(
    ("name", "value"),
    [("JAX_ENABLE_X64", "1"), ("JAX_DEFAULT_PRNG_IMPL", "rbg"), ("JAX_THREEFRY_PARTITIONABLE", "False")],
)
def test_settings_of_jax_that_change_the_numbers_are_refused(bare: pytest.MonkeyPatch, name: str, value: str) -> None:
    bare.delitem(sys.modules, "jax", raising=False)
    bare.setenv(name, value)
    with pytest.raises(UserError, match=f"{name} = .* would change the numbers"):
        runtime._check_numbers()
    bare.setenv(name, runtime._NUMBERS[name].upper())
    runtime._check_numbers()


def test_a_program_that_computes_in_64_bits_is_refused() -> None:
    runtime._check_numbers()
    with jax.enable_x64(True), pytest.raises(UserError, match="JAX_ENABLE_X64 = true would change the numbers"):
        runtime._check_numbers()
