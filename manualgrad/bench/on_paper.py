"""What a step costs in many processes, on paper: from the costs that the choice rests on, latency, and what was measured.

    DDP                 common + 2 (W - 1) latency, for each bucket, + gradients
    exchange_factors    the same without the weights whose factors are cheaper, + 2 (W - 1) latency + these factors

common is the forward pass and the deltas. Nothing overlaps on paper.
"""

from __future__ import annotations

from collections.abc import Sequence

from manualgrad.distributed.all_reduce import BUCKET_BYTES
from manualgrad.distributed.cost import Costs


SIZE = 4  # bytes of a float32
MOST_ROWS = 4096


def ddp_seconds(sizes: Sequence[int], rows: int, world: int, costs: Costs, latency: float, common: float) -> float:
    """Seconds of a step of `DistributedDataParallel` with so many rows in each process."""
    return common + sum(_gradients(_shapes(sizes), rows, world, costs, latency))


def our_seconds(sizes: Sequence[int], rows: int, world: int, costs: Costs, latency: float, common: float) -> float:
    """The same by `exchange_factors`: an all-gather of the numbers of rows, one of factors, an all-reduce of the rest."""
    sent = [(m, n) for m, n in _shapes(sizes) if _sends(m, n, rows, world, costs)]
    rest = [shape for shape in _shapes(sizes) if shape not in sent]
    factors = sum(costs.of_factors(m, n, [rows] * world, SIZE, SIZE) for m, n in sent)
    gathers = (world - 1) * latency * (2 if sent else 1)
    return common + gathers + factors + sum(_gradients(rest, rows, world, costs, latency))


def _gradients(
    shapes: Sequence[tuple[int, int]], rows: int, world: int, costs: Costs, latency: float
) -> tuple[float, float]:
    """Seconds of latency, also that of the biases, and of everything else."""
    buckets = max(1, round(sum(m * n for m, n in shapes) * SIZE / BUCKET_BYTES))
    return 2 * (world - 1) * latency * buckets, sum(costs.of_gradient(m, n, [rows] * world, SIZE) for m, n in shapes)


def break_even_rows(m: int, n: int, world: int, costs: Costs) -> int:
    """The most rows in each process of which a weight (m, n) sends the factors; 0 for none."""
    return max((rows for rows in range(1, MOST_ROWS + 1) if _sends(m, n, rows, world, costs)), default=0)


def _sends(m: int, n: int, rows: int, world: int, costs: Costs) -> bool:
    fits = world * rows * (m + n) < m * n  # else a factored gradient folds into a dense one
    return fits and costs.favour_factors(m, n, [rows] * world, SIZE, SIZE)


def _shapes(sizes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(sizes[1:], sizes[:-1], strict=True))
