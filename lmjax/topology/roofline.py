"""Lower bounds of the time of an update: arithmetic, memory, communication."""

from collections.abc import Sequence
from typing import NamedTuple

from lmjax.models import registry
from lmjax.run import build
from lmjax.run.build import Run
from lmjax.system import machine
from lmjax.topology.chips import Chip, Target
from lmjax.topology.collectives import Collective

_PCIE = 64e9  # bytes per second that PCI Express 5.0 with 16 lanes has, one way


class Bound(NamedTuple):
    """Demand of an update for one resource of a device, and the rate of that resource."""

    #: Name of the resource.
    name: str
    #: Amount that an update needs.
    amount: float
    #: Amount per second.
    rate: float
    #: Unit of the amount.
    unit: str

    @property
    def seconds(self) -> float:
        """Lower bound of the time."""
        return self.amount / self.rate


def roofline(run: Run, target: Target, sent: Sequence[Collective]) -> list[Bound]:
    """Return the bounds of the largest update.

    They are those of products and memory, in closed form, and of communication.
    """
    chip, peak = target.chip, machine.peak_flops(run.config.model.dtype, devices=target.devices[:1])
    near = sum(c.sent * c.times for c in sent if not c.far)
    far = sum(c.sent * c.times for c in sent if c.far)
    bounds = [
        Bound("products", flops(run, again=True) / run.mesh.size, peak, "FLOP"),
        Bound("memory", traffic(run), chip.bandwidth, "B"),
        Bound(_near_name(chip), near, chip.near, "B"),
        Bound("network", far, chip.far, "B"),
    ]
    return [bound for bound in bounds if bound.amount]


def _near_name(chip: Chip) -> str:
    if chip.is_tpu:
        return "ICI"
    return "NVLink" if chip.near > _PCIE else "PCIe"


def flops(run: Run, *, again: bool = False) -> float:
    """Return the FLOPs of the largest update.

    Args:
        run: The run.
        again: Include the forward pass of the blocks that `model.remat=full` computes a second time.
    """
    model = run.config.model
    per_token = run.flops_per_token
    if again and getattr(model, "remat", "none") == "full":
        per_token += max(per_token - 6.0 * model.vocab_size * model.width, 0.0) / 3
    return per_token * int(run.plan.sequences.max()) * build.rows_of_sequence(run.config) * registry.tokens(model)


def traffic(run: Run) -> float:
    """Return a lower bound of the memory traffic of the largest update, in bytes per device.

    Each pass reads the weights. Activations and logits are written and read once. Each microbatch reads and writes the
    sums of gradients. The state is read and written once.
    """
    config, mesh = run.config, run.mesh.shape
    shards, narrow = mesh["fsdp"] * mesh["tensor"], 2 if config.model.dtype == "bfloat16" else 4
    count = int(run.plan.microbatches.max())
    rows = config.batch.microbatch * build.rows_of_sequence(config) // (mesh["data"] * mesh["fsdp"])
    sizes = registry.memory(config.model, rows, optimizer=config.optimizer)
    passes = 3 if getattr(config.model, "remat", "none") == "full" else 2
    weights = passes * sizes["parameters"] / 4 * narrow / mesh["tensor"]
    transient = 2 * (sizes["activations"] + sizes["logits"]) / (mesh["sequence"] * mesh["tensor"])
    state = sizes["parameters"] + sizes.get("optimizer", 0.0) + sizes.get("average", 0.0)
    return count * (weights + transient + 2 * sizes["gradients"] / shards) + 2 * state / shards
