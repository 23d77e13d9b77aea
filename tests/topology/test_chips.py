"""Topologies and the table of chips; compiling for them is in test_compiled.py."""

import importlib.util
import math
from types import SimpleNamespace

import pytest

from lmjax.cli import main
from lmjax.config import UserError
from lmjax.system import machine
from lmjax.topology import chips


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        ("v5e:8x8", ("v5e", 1, (8, 8))),
        ("2*V5P:2x2x4", ("v5p", 2, (2, 2, 4))),
        ("h100:8", ("h100", 1, (8,))),
        ("h100:32", ("h100", 4, (8,))),  # nodes of 8
        ("2*a100:4", ("a100", 2, (4,))),
    ],
)
def test_a_topology_is_a_chip_a_number_and_a_shape(topology: str, expected: tuple[str, int, tuple[int, ...]]) -> None:
    assert chips.parse(topology) == expected


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v5e", "CHIP:SIZE as in v5e:1x1"),
        ("v9:8x8", "chips: v4, v5e, v5p, v6e, a100, h100, h200, b200, l40s, l4, rtx4090, a10g, t4"),
        ("v5e:32x32", "up to 256 chips"),
        ("0*v5e:4x4", "up to 256 chips"),
        ("h100:12", "nodes of 8"),
        ("h100:2x4", "nodes of 8"),
        ("h100:0", "nodes of 8"),
    ],
)
def test_an_impossible_topology_is_answered_with_the_choices(topology: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        chips.parse(topology)


@pytest.mark.parametrize(("topology", "extra"), [("v5e:4x4", "plan-tpu"), ("h100:8", "plan-gpu")])
def test_a_missing_compiler_is_answered_with_how_to_install_it(
    topology: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"pip install -e '.*\[{extra}\]' \([\d.]+ GB\)"):
        chips.target(topology)


def test_every_chip_has_a_peak_and_slower_networks_the_farther_they_reach() -> None:
    for chip in chips.CHIPS.values():
        device = SimpleNamespace(device_kind=chip.name, platform="tpu" if chip.is_tpu else "gpu", process_index=0)
        peak = machine.peak_flops("bfloat16", devices=[device])
        assert math.isfinite(peak)
        assert peak > chip.bandwidth > chip.near > chip.far > 0
        assert 8 * 2**30 < chip.memory < 256 * 2**30


def test_of_a_gpu_programs_have_the_share_that_jax_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = chips.Target("h100:8", chips.CHIPS["h100"], (), {}, {})
    monkeypatch.delenv(chips.MEMORY_FRACTION, raising=False)
    assert gpu.limit == 0.75 * gpu.chip.memory
    monkeypatch.setenv(chips.MEMORY_FRACTION, "0.9")
    assert gpu.limit == 0.9 * gpu.chip.memory
    tpu = chips.Target("v5e:8x8", chips.CHIPS["v5e"], (), {}, {})
    assert tpu.limit == 15.75 * 2**30


def test_the_command_answers_before_anything_heavy_is_imported(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main.main(["plan", "quickstart", "--topology", "v9:2"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: --topology v9:2: write CHIP:SIZE as in v5e:1x1")
