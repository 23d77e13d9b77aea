"""Settings of a saved configuration that select files, programs or accounts are not used."""

from dataclasses import replace
from pathlib import Path

import pytest

from lmjax.config import Config, DataConfig, RuntimeConfig, TrackConfig, presets, trust
from lmjax.config.codec import to_json

HARMLESS = ("--xla_cpu_max_isa=AVX2", "--xla_gpu_triton_gemm_any=false", "--xla_cpu_multi_thread_eigen=true")
FORGED = Config(
    data=DataConfig(cache="/elsewhere/tokens"),
    runtime=RuntimeConfig(
        compilation_cache="/elsewhere/programs",
        xla_flags=(*HARMLESS, "--xla_dump_to=/elsewhere"),
        gpu_flags=("--xla_gpu_cuda_data_dir=/elsewhere",),
        host_devices=2,
        allocator="system",
    ),
    track=TrackConfig(tensorboard=True, wandb="someone/project"),
)


@pytest.mark.parametrize(
    "flag",
    ["--xla_dump_to=/tmp", "--xla_dump_to=true", "--xla_gpu_cuda_data_dir=1", "--xla_gpu_dump_llvmir=true",
     "--xla_gpu_kernel_cache_file=1", "--xla_cpu_max_isa=AVX2/..", "--xla_cpu_x=true --xla_dump_to=a",
     "--xla_gpu_load_autotune_results_from=true", "--xla_cpu_enable_x=True", "--xla_cpu_x=\u0661"],
)  # fmt: skip
def test_a_flag_that_may_name_a_file_is_not_harmless(flag: str) -> None:
    assert not trust.is_harmless(flag)


def test_flags_of_compilation_are_harmless() -> None:
    assert [flag for flag in (*HARMLESS, *RuntimeConfig().gpu_flags) if not trust.is_harmless(flag)] == []


def test_a_command_that_reads_a_run_takes_nothing_of_its_runtime(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(to_json(FORGED))
    lines: list[str] = []
    config = presets.read(tmp_path / "config.json", report=lines.append)
    assert config == replace(FORGED, runtime=RuntimeConfig(), track=TrackConfig(tensorboard=True))
    (line,) = lines
    for change in ("track.wandb=someone/project", "runtime.compilation_cache=/elsewhere/programs",
                   "runtime.host_devices=2", "runtime.gpu_flags=[--xla_gpu_cuda_data_dir=/elsewhere]"):  # fmt: skip
        assert change in line


def test_training_takes_what_can_neither_write_nor_execute_and_names_both(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(to_json(FORGED))
    lines: list[str] = []
    config = presets.load(str(tmp_path / "config.json"), report=lines.append)
    assert config.runtime == RuntimeConfig(xla_flags=HARMLESS, gpu_flags=(), host_devices=2, allocator="system")
    assert (config.data.cache, config.track.wandb, config.track.tensorboard) == ("", "someone/project", True)
    ignored, used = lines
    assert "data.cache=/elsewhere/tokens" in ignored
    assert "runtime.xla_flags=[--xla_cpu_max_isa=AVX2," in ignored
    flags = f"runtime.xla_flags=[{','.join(HARMLESS)}] runtime.gpu_flags=[]"
    assert used.endswith(f"runtime.allocator=system runtime.host_devices=2 {flags}")


def test_what_the_user_gives_is_used_and_not_mentioned(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(to_json(replace(FORGED, runtime=RuntimeConfig(), track=TrackConfig())))
    lines: list[str] = []
    config = presets.load(str(tmp_path / "config.json"), ["data.cache=/elsewhere/tokens"], report=lines.append)
    assert (config.data.cache, lines) == ("/elsewhere/tokens", [])


def test_presets_and_default_configurations_are_used_completely(tmp_path: Path) -> None:
    lines: list[str] = []
    (tmp_path / "config.json").write_text(to_json(Config()))
    assert presets.load(str(tmp_path / "config.json"), report=lines.append) == Config()
    (tmp_path / "mine.py").write_text(
        "from lmjax.config import Config, RuntimeConfig\n"
        "def mine() -> Config:\n    return Config(runtime=RuntimeConfig(compilation_cache='/mine'))\n"
    )
    mine = presets.load(str(tmp_path / "mine.py"), report=lines.append)
    assert (mine.runtime.compilation_cache, lines) == ("/mine", [])
