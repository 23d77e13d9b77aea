"""What the machine can do, against NumPy's matrix products, the system's own files and a fake device."""

import os
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lmjax.system import machine


def device(kind: str, platform: str = "gpu", process_index: int = 0) -> SimpleNamespace:
    return SimpleNamespace(device_kind=kind, platform=platform, process_index=process_index)


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla T4", 65),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_known_accelerators(kind: str, teraflops: float) -> None:
    assert machine.peak_flops("bfloat16", devices=[device(kind)] * 2) == 2 * teraflops * 1e12


@pytest.mark.parametrize("kind", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA L40", "TPU v99", ""])
def test_an_unknown_accelerator_has_no_number_rather_than_a_wrong_one(kind: str) -> None:
    assert np.isnan(machine.peak_flops("bfloat16", devices=[device("NVIDIA A100"), device(kind)]))


def test_the_measured_peak_is_what_numpy_reaches_too() -> None:
    machine._measure.cache_clear()
    begun = time.perf_counter()
    measured = machine.peak_flops("float32")
    seconds = time.perf_counter() - begun
    assert seconds < 5  # 0.15 s on an idle machine; this only catches a loop that does not end
    a = np.full((1024, 1024), 0.5, np.float32)
    times = []
    for _ in range(10):
        begun = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - begun)
    # Another library, perhaps other threads, on a machine that others use: the same order of magnitude.
    assert 0.1 < measured * min(times) / (2 * 1024**3) < 10


def test_a_peak_is_measured_once_and_virtual_devices_share_it() -> None:
    one = machine.peak_flops("float32")
    assert machine.peak_flops("float32", devices=[device("cpu", "cpu")] * 8) == one
    assert machine.peak_flops("float32", devices=[device("cpu", "cpu", i // 4) for i in range(8)]) == 2 * one


def test_bfloat16_can_be_measured_where_transfers_are_forbidden() -> None:
    machine._measure.cache_clear()
    with jax.transfer_guard("disallow"):
        assert machine.peak_flops("bfloat16") > 1e8


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_what_the_system_says() -> None:
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    high_water = 1024 * int(status["VmHWM"].split()[0])
    peak, total, available = machine.peak_memory(), machine.total_memory(), machine.available_memory()
    assert peak is not None
    assert total is not None
    assert available is not None
    assert abs(peak - high_water) < 64e6  # read a moment apart; the kernel counts in batches
    assert peak < total
    assert 0 < available <= total
    block = np.ones(20_000_000)  # 160 MB
    after = machine.peak_memory()
    assert after is not None
    assert after >= max(peak, block.nbytes)


def test_a_container_s_limits_count(tmp_path, monkeypatch) -> None:
    real = machine.Path
    monkeypatch.setattr(
        machine,
        "Path",
        lambda first, *rest: real(tmp_path if str(first).startswith("/sys") else first, *rest),
    )
    (tmp_path / "memory.max").write_text("max\n")
    unlimited = machine.total_memory()
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert machine.total_memory() == 1_000_000
    assert unlimited is None or unlimited > 1_000_000
    if sys.platform.startswith("linux"):
        assert machine.available_memory() == 600_000


def test_device_memory_reports_what_the_device_tells() -> None:
    stats = {"bytes_in_use": 5, "peak_bytes_in_use": 7, "bytes_limit": 16, "num_allocs": 1}
    assert machine.device_memory(SimpleNamespace(memory_stats=lambda: stats)) == {
        "peak": 7,
        "used": 5,
        "limit": 16,
    }
    assert machine.device_memory(SimpleNamespace(memory_stats=lambda: None)) == {}


def test_the_description_is_one_line() -> None:
    text = machine.describe()
    assert "\n" not in text
    assert f"{machine.cores()} cores" in text
    assert f"jax {jax.__version__}" in text
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
    assert machine._devices([device("TPU v4")] * 3 + [device("L4")]).startswith("3 x TPU v4, 1 x L4")
