"""The table of accelerators: names of devices, and numbers that fit together."""

import math

import pytest

from lmjax.system.accelerators import ACCELERATORS, find


@pytest.mark.parametrize(
    ("device_kind", "name"),
    [
        ("TPU v5 lite", "TPU v5e"),
        ("TPU v5", "TPU v5p"),
        ("TPU v6 lite", "TPU v6e"),
        ("NVIDIA H100 80GB HBM3", "H100 80GB HBM3"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA GB200", "GB200"),
        ("nvidia l4", "L4"),
    ],
)
def test_the_longest_name_of_complete_words_wins(device_kind: str, name: str) -> None:
    assert find(device_kind) == ACCELERATORS[name]


@pytest.mark.parametrize("device_kind", ["", "TPU v99", "NVIDIA L40", "NVIDIA GeForce RTX 4090 Laptop GPU"])
def test_an_unknown_device_has_no_numbers(device_kind: str) -> None:
    assert all(map(math.isnan, find(device_kind)))


def test_every_accelerator_has_a_peak_and_either_all_other_numbers_or_none() -> None:
    for name, accelerator in ACCELERATORS.items():
        assert accelerator.peak > 1e13, name
        assert len({math.isnan(number) for number in accelerator[1:]}) == 1, name
