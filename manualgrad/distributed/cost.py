"""Whether the factors of a gradient are worth sending: the rule, and what it rests on. Nothing else decides.

With W processes of which each has r rows of a weight (m, n), a process

    sends    (W - 1) r (m + n) numbers of factors,        or  2 (W - 1) / W m n of the gradient (a ring's all-reduce)
    computes 2 W r m n FLOPs while it updates the weight,  or  2 r m n for its own gradient, which is then added to the weight

Both are turned into seconds and added up. In between lies the number of rows from which on the gradient is cheaper.

Measured on two cores of an AMD EPYC with AVX2, float32, gloo, a thread in each process, glibc malloc, 4096 x 4096: 1.2e9 bytes a
second sent on loopback and 1.2e8 over 1 Gb/s, 6e10 FLOPs, 8e9 bytes updated from factors, 1e9 from gradients, which is what
fresh pages cost. Of 2 / 4 processes then up to 183 / 76 rows each send factors, over 1 Gb/s 760 / 368. A step of
1024-4096-4096-4096-1024 in 2 processes on loopback takes 0.24 s by factors and 0.47 s by gradients at 8 rows, 0.25 to 0.32
and 0.54 at 32; at 512 the rule takes gradients: 2.3 s, by factors 3.1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Costs(NamedTuple):
    """The speeds of the slowest process. `exchange_factors` measures them, or is told."""

    bandwidth: float  # bytes a second that a process sends while all of them do
    flops: float  # FLOPs a second of the product of factors of few rows
    update: float  # bytes a second of a weight, when one row of factors updates it
    gradient: float  # bytes a second of a gradient that is written, in fresh memory, and added to the weight

    def favour_factors(self, m: int, n: int, rows: Sequence[int], factor_size: int, weight_size: int) -> bool:
        """Whether a gradient of m n entries of `weight_size` bytes costs more than `rows` (by rank) of its factors do."""
        return self.of_factors(m, n, rows, factor_size, weight_size) < self.of_gradient(m, n, rows, weight_size)

    def of_factors(self, m: int, n: int, rows: Sequence[int], factor_size: int, weight_size: int) -> float:
        """Seconds. The gathered factors are padded: each process sends as much as the one with the most rows."""
        sent = (len(rows) - 1) * max(rows) * (m + n) * factor_size
        return sent / self.bandwidth + 2 * sum(rows) * m * n / self.flops + m * n * weight_size / self.update

    def of_gradient(self, m: int, n: int, rows: Sequence[int], size: int) -> float:
        """Seconds. The gradient is written by the product, averaged, and added to the weight."""
        sent = 2 * (len(rows) - 1) / len(rows) * m * n * size
        return sent / self.bandwidth + 2 * max(rows) * m * n / self.flops + m * n * size / self.gradient


_SENT = 2**20  # entries, 4 MiB: long enough that latency does not count
_ROWS = 64  # of the update
_LARGEST = 2**24  # entries of the gradient: 64 MiB, which no allocator keeps
_TIMES = 3


def measured(weight: Tensor, group: dist.ProcessGroup, bandwidth: float | None = None) -> Costs:
    """The costs for weights like this one, the same in every process: the slowest one's. A bandwidth that is given is not
    measured."""
    world, device = dist.get_world_size(group), weight.device
    n = weight.size(1)
    m = max(1, min(weight.size(0), _LARGEST // n))
    sent, delta, a = (torch.ones(size, device=device) for size in ((_SENT,), (_ROWS, m), (_ROWS, n)))
    w = torch.zeros(m, n, device=device)

    def all_reduce() -> None:
        dist.all_reduce(sent, group=group)
        sent[0].item()  # waits for a GPU

    def update(rows: int) -> None:
        w.addmm_(delta[:rows].T, a[:rows]) if rows > 1 else w.addcmul_(delta[0, :, None], a[0])
        w[0, 0].item()

    def gradient() -> None:
        w.add_(torch.outer(delta[0], a[0]))
        w[0, 0].item()

    if bandwidth is None:
        bandwidth = 2 * (world - 1) / world * sent.nbytes / shortest(all_reduce) if world > 1 else float("inf")
    one, many = (shortest(partial(update, rows)) for rows in (1, _ROWS))
    flops = 2 * (_ROWS - 1) * m * n / max(many - one, many / _ROWS)
    own = torch.tensor([bandwidth, flops, w.nbytes / one, w.nbytes / shortest(gradient)], dtype=torch.float64).to(
        device
    )
    dist.all_reduce(own, dist.ReduceOp.MIN, group=group)
    return Costs(*own.tolist())


def shortest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of a few runs, after one that is not timed."""
    run()
    times = []
    for _ in range(_TIMES):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
