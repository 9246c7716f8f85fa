"""Whether the factors of a gradient are worth sending: the rule, and what it rests on. Nothing else decides.

With W processes of which each has r rows of a weight (m, n), a process

    sends    (W - 1) r (m + n) numbers of factors,  or  2 (W - 1) / W m n of the gradient (a ring's all-reduce)
    computes 2 W r m n FLOPs in the update,         or  2 r m n for its own gradient, which is then read and written

Both are turned into seconds and added up. In between lies the number of rows from which on the gradient is cheaper.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist


class Costs(NamedTuple):
    """The speeds of the slowest process. `exchange_factors` measures them, or is told."""

    bandwidth: float  # bytes a second that a process sends while all of them do
    flops: float  # FLOPs a second of a product of few rows
    memory: float = 8e9  # bytes a second of reading and writing large tensors: a core of a server, to a factor of two

    def favour_factors(self, m: int, n: int, rows: Sequence[int], factor_size: int, weight_size: int) -> bool:
        """Whether a gradient of m n entries of `weight_size` bytes costs more than `rows` (by rank) of its factors do."""
        return self.of_factors(m, n, rows, factor_size) < self.of_gradient(m, n, rows, weight_size)

    def of_factors(self, m: int, n: int, rows: Sequence[int], size: int) -> float:
        """Seconds. The gathered factors are padded: each process sends as much as the one with the most rows."""
        sent = (len(rows) - 1) * max(rows) * (m + n) * size
        return sent / self.bandwidth + 2 * sum(rows) * m * n / self.flops

    def of_gradient(self, m: int, n: int, rows: Sequence[int], size: int) -> float:
        """Seconds. The gradient is written by the product, averaged, and read by the optimizer."""
        sent = 2 * (len(rows) - 1) / len(rows) * m * n * size
        passed_over = 4 * m * n * size
        return sent / self.bandwidth + 2 * max(rows) * m * n / self.flops + passed_over / self.memory


_SENT = 2**20  # entries, 4 MiB: long enough that latency does not count
_ROWS, _SIZE = 64, 1024  # of the product
_TIMES = 3


def measured(device: torch.device, group: dist.ProcessGroup, bandwidth: float | None = None) -> Costs:
    """The costs, the same in every process: the slowest one's. A bandwidth that is given is not measured."""
    world = dist.get_world_size(group)
    sent, delta, a = (torch.ones(size, device=device) for size in ((_SENT,), (_ROWS, _SIZE), (_ROWS, _SIZE)))
    w = torch.zeros(_SIZE, _SIZE, device=device)

    def all_reduce() -> None:
        dist.all_reduce(sent, group=group)
        sent[0].item()  # waits for a GPU

    def product() -> None:
        w.addmm_(delta.T, a)
        w[0, 0].item()

    if bandwidth is None:
        bandwidth = 2 * (world - 1) / world * sent.nbytes / _shortest(all_reduce) if world > 1 else float("inf")
    speeds = torch.tensor([bandwidth, 2 * _ROWS * _SIZE**2 / _shortest(product)], dtype=torch.float64)
    speeds = speeds.to(device)
    dist.all_reduce(speeds, dist.ReduceOp.MIN, group=group)
    return Costs(*speeds.tolist())


def _shortest(run: Callable[[], None]) -> float:
    run()
    times = []
    for _ in range(_TIMES):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
