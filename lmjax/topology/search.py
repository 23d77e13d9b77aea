"""Search for the largest microbatch whose update fits in the memory of a device."""

from collections.abc import Callable, Sequence

from lmjax.run.build import Run


def search(
    measure: Callable[[int], float], candidates: Sequence[int], *, first: int, floor: float, limit: float, most: int
) -> dict[int, float]:
    """Search for the largest microbatch that fits.

    The size is nearly linear in the microbatch. Each compilation but the first therefore tries the largest candidate
    that is `expected` to fit.

    Args:
        measure: Compiles a microbatch and returns its size.
        candidates: The microbatches to choose from.
        first: The microbatch to compile first.
        floor: The size of microbatch 0.
        limit: The memory of a device.
        most: Maximum number of compilations.

    Returns:
        The size of each compiled microbatch.
    """
    sizes = {first: measure(first)}
    while len(sizes) < most and (left := open_ones(sizes, candidates, limit)):
        fitting = [m for m in left if expected(sizes, m, floor=floor, limit=limit) <= limit]
        choice = fitting[-1] if fitting else left[0]
        sizes[choice] = measure(choice)
    return sizes


def open_ones(sizes: dict[int, float], candidates: Sequence[int], limit: float) -> list[int]:
    """Return the candidates above the largest that fits and below the smallest that does not."""
    below = max((m for m, size in sizes.items() if size <= limit), default=0)
    above = min((m for m, size in sizes.items() if size > limit), default=max(candidates) + 1)
    return sorted(m for m in candidates if below < m < above)


def expected(sizes: dict[int, float], microbatch: int, *, floor: float, limit: float) -> float:
    """Extrapolate the size of a microbatch from the two known sizes nearest the limit.

    If only one size is known, the floor is the second.
    """
    known = sorted(sizes.items(), key=lambda item: abs(item[1] - limit))
    (m, size), (other_microbatch, its_size) = known[0], known[1] if len(known) > 1 else (0, floor)
    return size + (size - its_size) / (m - other_microbatch) * (microbatch - m)


def microbatches(run: Run) -> list[int]:
    """Return the multiples of the number of row shards that divide the largest batch."""
    rows, batch = run.mesh.shape["data"] * run.mesh.shape["fsdp"], int(run.plan.sequences.max())
    return [m for m in range(rows, batch + 1, rows) if batch % m == 0]
