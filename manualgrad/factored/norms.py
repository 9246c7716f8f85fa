"""Norms and overflow of a factored gradient, without a tensor of the weight's size."""

from __future__ import annotations

import torch
from torch import Tensor

from manualgrad import equations
from manualgrad.factored.factors import is_number
from manualgrad.factored.gradient import FactoredGradient


_ROWS = 256  # of a Gram matrix at once
_FEW = 32  # rows for which float64 costs nothing


def two_norm(gradient: FactoredGradient) -> Tensor:
    """|dC/dw| in float64: entries of both signs cancel in the sum over Gram matrices, and float32 would lose them."""
    squared = torch.zeros((), dtype=torch.float64, device=gradient.device)
    if not gradient.content.factors:
        return squared
    delta, a, scale = gradient.content.joined(torch.float64, "its norm")
    for i in range(0, delta.size(0), _ROWS):  # the Gram matrices are symmetric: half of their blocks will do
        block, after = slice(i, i + _ROWS), slice(i + _ROWS, None)
        squared += equations.inner_products(delta[block], a[block], delta[block], a[block])
        squared += 2 * equations.inner_products(delta[block], a[block], delta[after], a[after])
    norm = squared.clamp(min=0).sqrt()
    return norm if is_number(scale, 1) else norm * torch.as_tensor(scale).abs()


def two_norm_in_float32(gradient: FactoredGradient) -> Tensor | None:
    """|dC/dw| in float64 from Gram matrices in float32, half the time; None where they would not be exact to 1e-5.

    Each entry (i, j) of a Gram matrix is off by some eps |delta_i| |delta_j|, and as these errors have both signs, the sum over
    all of (delta delta^T) * (a a^T) is off by some eps sum_i |delta_i|^2 |a_i|^2, and by what underflows. That is little if the
    sum is not much smaller: if samples do not cancel. Looking at it would make a GPU wait.
    """
    is_single = gradient.dtype == torch.float32 and gradient.content.dtype_of_product(gradient.dtype) == torch.float32
    if gradient.device.type != "cpu" or not is_single or gradient.rank <= _FEW:
        return None
    delta, a, scale = gradient.content.joined(torch.float32, "its norm")
    of_delta, of_a = (delta @ delta.t()).double(), (a @ a.t()).double()
    squared = torch.sum(of_delta * of_a)
    d, e = of_delta.diagonal(), of_a.diagonal()
    rounding = 16 * torch.finfo(torch.float32).eps * torch.dot(d, e) + 1e-34 * delta.size(0) ** 2 * (d.max() + e.max())
    if not rounding <= 1e-5 * squared < torch.inf:  # NaN is not
        return None
    return (squared.sqrt() * scale).abs()


def norm_by_tiles(gradient: FactoredGradient, order: float, axis: int | None = None) -> Tensor:
    """|dC/dw| of that order, over all entries (), over the rows (axis 0: (n,)) or over the columns (axis 1: (m,))."""
    norms = [torch.linalg.vector_norm(tile, order, axis) for _, tile in gradient.tiles()]
    if axis == 1:
        return torch.cat(norms)
    return torch.stack(norms).sum(0) if order == 0 else torch.linalg.vector_norm(torch.stack(norms), order, 0)


def overflows(gradient: FactoredGradient) -> Tensor:
    """Whether an entry is inf or NaN, as a 0-dimensional tensor.

    No entry exceeds sum_r max|delta_r| max|a_r|; only where that bound is not finite either, the entries are looked at. On a
    GPU the bound decides alone, since looking would wait for it.
    """
    if gradient.rank == 0 or gradient.numel() == 0:
        return torch.zeros((), device=gradient.device)
    bound = torch.sum(gradient.delta.abs().amax(1).double() * gradient.a.abs().amax(1).double())
    overflows = ~(bound <= torch.finfo(gradient.dtype).max)  # NaN is not <= anything
    if gradient.device.type == "cpu" and overflows:
        overflows = ~torch.stack([tile.isfinite().all() for _, tile in gradient.tiles()]).all()
    return overflows
