"""One all-gather that brings the factors of many weights from every process to every process.

A process lays its factors out one weight behind the other: delta (rows, m), a (rows, n), each in the dtype that was agreed,
and then rows and rows per sample of its summands where they differ. The buffers are padded to the longest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from manualgrad.distributed import ddp
from manualgrad.distributed.offer import Agreement, Offer
from manualgrad.factored.factors import Factors, is_number


_ALIGNED = 16  # bytes: where any dtype may begin


class Piece(NamedTuple):
    """A matrix of a buffer."""

    start: int
    shape: tuple[int, int]
    dtype: torch.dtype

    @property
    def end(self) -> int:
        return self.start + math.prod(self.shape) * self.dtype.itemsize

    def of(self, buffer: Tensor) -> Tensor:
        return buffer[self.start : self.end].view(self.dtype).view(self.shape)


def gathered(
    weights: Sequence[Tensor],  # of shapes (m, n)
    own: Sequence[Sequence[Factors]],
    agreements: Sequence[Agreement],
    group: dist.ProcessGroup,
) -> list[list[Factors]]:
    """The summands of the mean over the processes, for each weight, on its device: the same bits everywhere."""
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    layouts = [_layout(weights, agreements, r) for r in range(world)]
    size = max(piece.end for layout in layouts for pieces in layout for piece in pieces) if weights else 0
    if size == 0:
        return [[] for _ in weights]
    device = weights[0].device
    sent = torch.empty(size, dtype=torch.uint8, device=device)
    for factors, (delta, a, samples) in zip(own, layouts[rank], strict=True):
        _fill(delta.of(sent), a.of(sent), factors)
        if samples.shape[0]:
            pairs = [(f.delta.size(0), f.rows_per_sample) for f in factors]
            samples.of(sent).copy_(torch.tensor(pairs))
    received = torch.empty(world * size, dtype=torch.uint8, device=device)
    ddp.all_gather(received, sent, group=group)
    buffers = received.chunk(world)
    return [
        _mean(
            w,
            agreement.offers,
            [[piece.of(b) for piece in layout[i]] for b, layout in zip(buffers, layouts, strict=True)],
        )
        for i, (w, agreement) in enumerate(zip(weights, agreements, strict=True))
    ]


def _layout(weights: Sequence[Tensor], agreements: Sequence[Agreement], rank: int) -> list[tuple[Piece, Piece, Piece]]:
    """Where delta, a and the samples of each weight lie in the buffer of one process."""
    layout, end = [], 0

    def piece(rows: int, columns: int, dtype: torch.dtype) -> Piece:
        nonlocal end
        made = Piece(-(-end // _ALIGNED) * _ALIGNED, (rows, columns), dtype)
        end = made.end
        return made

    for w, agreement in zip(weights, agreements, strict=True):
        (m, n), o = w.shape, agreement.offers[rank]
        mixed = o.summands if o.rows_per_sample == 0 else 0
        layout.append(
            (piece(o.rows, m, agreement.dtype), piece(o.rows, n, agreement.dtype), piece(mixed, 2, torch.int64))
        )
    return layout


def _fill(delta: Tensor, a: Tensor, factors: Sequence[Factors]) -> None:
    start = 0
    for f in factors:
        rows = slice(start, start := start + f.delta.size(0))
        delta[rows].copy_(f.delta if is_number(f.scale, 1) else f.delta.to(delta.dtype) * f.scale)
        a[rows].copy_(f.a)


def _mean(weight: Tensor, offers: Sequence[Offer], by_rank: list[list[Tensor]]) -> list[Factors]:
    """One pair of factors where all samples are alike, else a pair for each kind of sample."""
    there = [(o, parts) for o, parts in zip(offers, by_rank, strict=True) if o.rows]
    samples = {o.rows_per_sample for o, _ in there}
    if len(samples) == 1 and 0 not in samples:
        delta, a = (torch.cat([parts[i] for _, parts in there]) for i in (0, 1))
        return [_shared(weight, delta, a, len(offers), samples.pop())]
    summands = []
    for o, (delta, a, pairs) in there:
        start = 0
        for count, rows_per_sample in pairs.tolist() if o.rows_per_sample == 0 else [(o.rows, o.rows_per_sample)]:
            rows = slice(start, start := start + count)
            summands.append(_shared(weight, delta[rows].clone(), a[rows].clone(), len(offers), rows_per_sample))
    return summands


def _shared(weight: Tensor, delta: Tensor, a: Tensor, world: int, rows_per_sample: int) -> Factors:
    """The factors over W. Those of a half precision keep 1 / W as their scale: it would round them, or let them vanish."""
    delta, a = delta.to(weight.device), a.to(weight.device)
    if delta.element_size() < 4:
        return Factors.of(delta, a, 1 / world, rows_per_sample)
    return Factors.of(delta.mul_(1 / world), a, 1.0, rows_per_sample)
