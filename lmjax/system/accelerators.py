"""Peak speed, memory and bandwidths of accelerators, from their makers' data sheets."""

import re
from math import nan
from typing import NamedTuple

_GiB = 2**30


class Accelerator(NamedTuple):
    """Memory and speed of one JAX device; NaN where unknown."""

    #: FLOP/s of dense matrix products in bf16 (f16 where there is no bf16).
    peak: float
    #: Bytes of memory that programs can use.
    memory: float = nan
    #: Bytes per second between memory and processor.
    bandwidth: float = nan
    #: Bytes per second, one way, over all links to the devices of the same slice or node.
    near: float = nan
    #: Bytes per second, one way, to the network between slices or nodes.
    far: float = nan


_V5E = Accelerator(197e12, 15.75 * _GiB, 819e9, 200e9, 3.125e9)
_V5P = Accelerator(459e12, 95.74 * _GiB, 2765e9, 600e9, 6.25e9)
_V6E = Accelerator(918e12, 31.25 * _GiB, 1600e9, 400e9, 12.5e9)

#: Accelerators by a part of their `device_kind`.
#:
#: Peaks of TPUs: cloud.google.com/tpu/docs/system-architecture-tpu-vm and the page of each version. A v2 or v3 chip
#: (45 and 123 TFLOP/s) and a TPU7x chip (2307) are two JAX devices each, the others one. Peaks of GPUs: NVIDIA's
#: data sheets of GB200 NVL72 (360 PFLOP/s sparse for 72), HGX B200 (36 sparse for 8), H200, H100, A100, L40S, L4,
#: A10, A10G, RTX A6000, V100 and T4; NVIDIA quotes most tensor-core numbers with 2:4 sparsity, and the dense numbers
#: are half of these. RTX 5090, 4090 and 3090: NVIDIA's architecture white papers (Blackwell, Ada, Ampere GA102),
#: appendix A: bf16 with f32 accumulation.
#:
#: Memory of a TPU: the limit of its compiler. Bandwidths of TPUs: docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e},
#: which quotes interconnects for both directions together, and the data-centre network of v5e and v6e for a pod of
#: 256 chips. v4: Jouppi et al. 2023, table 4 (6 links of 50 GB/s); its network is assumed to be v5p's. Memory and
#: bandwidths of GPUs: NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM and HGX B200 (NVLink quoted both
#: ways together); the network of DGX A100 (200 Gb/s a GPU), DGX H100, H200 and B200 (400 Gb/s). L40S, L4, A10G, T4 and
#: RTX 4090 have no NVLink: PCI Express 4.0 (T4: 3.0) with 16 lanes, and 100 Gb/s for the 8 GPUs of a node are assumed.
ACCELERATORS = {
    "TPU v2": Accelerator(22.5e12),
    "TPU v3": Accelerator(61.5e12),
    "TPU v4 lite": Accelerator(138e12),
    "TPU v4": Accelerator(275e12, 30.75 * _GiB, 1228e9, 300e9, 6.25e9),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": Accelerator(1153.5e12),
    "GB200": Accelerator(2500e12),
    "B200": Accelerator(2250e12, 191_514_673_152, 7672e9, 900e9, 50e9),
    "H200": Accelerator(989.5e12, 141_000_000_000, 4800e9, 450e9, 50e9),
    "H100 PCIe": Accelerator(756.5e12),
    "H100 NVL": Accelerator(835.5e12),
    "H100 80GB HBM3": Accelerator(989.5e12, 84_978_434_048, 3352e9, 450e9, 50e9),
    "H100": Accelerator(989.5e12),
    "A100-SXM4-80GB": Accelerator(312e12, 85_100_068_864, 2039e9, 300e9, 25e9),
    "A100": Accelerator(312e12),
    "L40S": Accelerator(362e12, 48_305_799_168, 864e9, 32e9, 1.5625e9),
    "L4": Accelerator(121e12, 24_152_899_584, 300e9, 32e9, 1.5625e9),
    "A10": Accelerator(125e12),
    "A10G": Accelerator(70e12, 23_835_181_056, 600e9, 32e9, 1.5625e9),
    "RTX A6000": Accelerator(154.8e12),
    "V100": Accelerator(125e12),
    "T4": Accelerator(65e12, 15_843_721_216, 320e9, 16e9, 1.5625e9),
    "RTX 5090": Accelerator(209.5e12),
    "RTX 4090": Accelerator(165.2e12, 25_393_692_672, 1008e9, 32e9, 1.5625e9),
    "RTX 3090": Accelerator(71e12),
}


def find(device_kind: str) -> Accelerator:
    """Return the accelerator of a `device_kind`.

    The longest name that matches complete words wins. All numbers of an unknown device are NaN.
    """
    names = [name for name in ACCELERATORS if re.search(rf"\b{re.escape(name)}\b", device_kind, re.IGNORECASE)]
    return ACCELERATORS[max(names, key=len)] if names and "Laptop" not in device_kind else Accelerator(nan)
