"""What the processes tell each other about their gradients before they exchange them, and what follows from it.

Each process makes an offer for each weight; all of them are gathered, and every process draws the same conclusion from
the same numbers. Nobody decides by what only it sees.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from manualgrad.distributed import ddp
from manualgrad.distributed.cost import Costs
from manualgrad.factored.factors import Factors, is_number
from manualgrad.factored.gradient import FactoredGradient


class Kind(IntEnum):
    """What stands in `weight.grad` of one process."""

    NOTHING = 0
    FACTORS = 1
    DENSE = 2
    INVALID = 3  # factors that were changed in place


class Offer(NamedTuple):
    """One process's gradient of one weight, as numbers that are sent to all."""

    kind: int
    kept: int = 0  # how many of its first summands earlier exchanges have brought, the same to every process
    kept_rows: int = 0
    rows: int = 0  # of the other summands
    dtype: int = -1  # in which they travel: an index into DTYPES
    summands: int = 0
    rows_per_sample: int = 0  # of all of these summands; 0 where they differ


DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class Received:
    """Which summands of a gradient earlier exchanges have brought: in every process the same ones, if they are still there.

    A gradient that is accumulated over several synchronised backward passes, as without `no_sync`, begins with them; their
    mean over the processes is themselves, so only what comes behind them has to be sent.
    """

    def __init__(self) -> None:
        self._summands: list[tuple[weakref.ref[Tensor], float | Tensor]] = []

    def at_the_front_of(self, factors: Sequence[Factors]) -> int:
        count = 0
        for f, (delta, scale) in zip(factors, self._summands, strict=False):
            if f.delta is not delta() or f.scale is not scale:  # another's, or scaled since, perhaps only here
                break
            count += 1
        return count

    def keep(self, count: int, new: Sequence[Factors]) -> None:
        self._summands = self._summands[:count] + [(weakref.ref(f.delta), f.scale) for f in new]


def offer(gradient: Tensor | None, received: Received) -> Offer:
    """What this process has to say about its gradient."""
    if gradient is None:
        return Offer(Kind.NOTHING)
    if not isinstance(gradient, FactoredGradient) or gradient.is_dense:
        return Offer(Kind.DENSE)
    factors = gradient.content.factors
    try:
        for f in factors:
            f.check_versions("exchanging it with other processes")
    except RuntimeError:
        return Offer(Kind.INVALID)
    kept = received.at_the_front_of(factors)
    old, new = factors[:kept], factors[kept:]
    samples = {f.rows_per_sample for f in new}
    return Offer(
        Kind.FACTORS,
        kept,
        sum(f.delta.size(0) for f in old),
        sum(f.delta.size(0) for f in new),
        DTYPES.index(travelling_dtype(new, gradient.dtype)) if new else -1,
        len(new),
        samples.pop() if len(samples) == 1 else 0,
    )


def travelling_dtype(factors: Sequence[Factors], dtype: torch.dtype) -> torch.dtype:
    """The factors' own dtype, in which nothing is rounded; that of the gradient where they have scales to be multiplied by."""
    dtypes = {f.delta.dtype for f in factors}
    return dtypes.pop() if len(dtypes) == 1 and all(is_number(f.scale, 1) for f in factors) else dtype


class Agreement(NamedTuple):
    """What all processes do with the gradient of one weight."""

    kind: Kind  # NOTHING: leave it; FACTORS: gather them; DENSE: all-reduce it
    kept: int = 0  # summands that stay in front
    dtype: torch.dtype = torch.float32
    offers: tuple[Offer, ...] = ()  # by rank

    @property
    def rows(self) -> list[int]:
        """That each process sends."""
        return [o.rows for o in self.offers]


def gathered_offers(own: list[Offer], device: torch.device, group: dist.ProcessGroup) -> list[tuple[Offer, ...]]:
    """For each weight what every process offers, by rank. One collective of a few numbers."""
    world = dist.get_world_size(group)
    numbers = torch.tensor(own, dtype=torch.int64, device=device)
    everyone = torch.empty((world, *numbers.shape), dtype=torch.int64, device=device)
    ddp.all_gather(everyone.flatten(), numbers.flatten(), group=group)
    return [tuple(Offer(*o) for o in by_rank) for by_rank in everyone.transpose(0, 1).tolist()]


def agreement(weight: Tensor, offers: tuple[Offer, ...], costs: Costs) -> Agreement:
    """What follows from the offers for a weight (m, n): the same in every process."""
    kinds = {o.kind for o in offers}
    if kinds == {Kind.NOTHING}:
        return Agreement(Kind.NOTHING)
    if Kind.DENSE in kinds or len({o.kept for o in offers}) > 1:
        return Agreement(Kind.DENSE)
    travelling = [DTYPES[o.dtype] for o in offers if o.dtype >= 0]
    dtype = travelling[0] if travelling else weight.dtype
    for other in travelling[1:]:
        dtype = torch.promote_types(dtype, other)
    rows = [o.rows for o in offers]
    m, n = weight.shape
    kept_rows = max(o.kept_rows for o in offers)
    if (kept_rows + sum(rows)) * (m + n) >= m * n:  # where a factored gradient folds into a dense one
        return Agreement(Kind.DENSE)
    if not costs.favour_factors(m, n, rows, dtype.itemsize, weight.element_size()):
        return Agreement(Kind.DENSE)
    return Agreement(Kind.FACTORS, offers[0].kept, dtype, offers)
