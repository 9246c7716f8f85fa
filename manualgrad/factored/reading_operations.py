"""What a factored gradient does in operations that read it and leave it as it is: norms, checks, copies, shapes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from manualgrad.factored.cost import pays_by_gram_matrices
from manualgrad.factored.gradient import FactoredGradient
from manualgrad.factored.norms import norm_by_tiles, overflows, two_norm, two_norm_in_float32
from manualgrad.factored.operations import implements


aten = torch.ops.aten


# From the factors, or from a few rows at a time.


@implements(aten.linalg_vector_norm.default)
def vector_norm(
    gradient: FactoredGradient,
    ord: float = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:  # clip_grad_norm_, Tensor.norm
    axes = {0, 1} if dim is None else {d % 2 for d in dim}
    if gradient.is_dense or gradient.numel() == 0 or not axes:
        return NotImplemented
    if len(axes) == 1:  # Adafactor
        (axis,) = axes
        norm = norm_by_tiles(gradient, ord, axis).to(dtype or gradient.dtype)
        return norm.unsqueeze(axis) if keepdim else norm
    if ord == 2 and not pays_by_gram_matrices(gradient.rank, *gradient.shape):
        # Dense once, for this and for the update. Row by row: half the time, and summed at once float32 is off by 1e-3.
        of_rows = torch.linalg.vector_norm(gradient.densify(), 2, 1, dtype=dtype)
        return torch.linalg.vector_norm(of_rows.unsqueeze(1), 2, (0, 1), keepdim)
    quick = two_norm_in_float32(gradient) if ord == 2 else norm_by_tiles(gradient, ord)
    norm = two_norm(gradient) if quick is None else quick
    if ord == 2 and gradient.device.type == "cpu" and not 0 < norm <= torch.finfo(gradient.dtype).max:
        # Where infinities of both signs meet in the Gram matrices, or squares leave float64's range, they tell nothing, but
        # clip_grad_norm_ treats inf and NaN differently. And an entry may be infinite in the gradient's own dtype. On a GPU,
        # where looking would wait for it, NaN may stand for inf.
        norm = norm_by_tiles(gradient, 2)
    norm = _with_overflow(gradient, norm.to(dtype or gradient.dtype))
    return norm.view(1, 1) if keepdim else norm


def _with_overflow(gradient: FactoredGradient, norm: Tensor) -> Tensor:
    """The norm, so that clipping by it shows an overflow that is in the product alone.

    Clipping multiplies by 0 after an infinite norm. An infinite entry becomes NaN then, but finite factors would become
    zero and the step would pass in silence: the entries are written down. On a GPU, where looking would wait for it, the norm
    is NaN instead.
    """
    if gradient.device.type != "cpu":
        return torch.where(norm.isinf() & overflows(gradient).bool(), torch.nan, norm)
    if norm.isinf() and gradient.delta.isfinite().all() and gradient.a.isfinite().all():
        gradient.densify()
    return norm


@implements(aten.isnan.default)
def is_nan(gradient: FactoredGradient) -> Any:  # torch.autograd.set_detect_anomaly, on each new gradient
    if gradient.is_dense:
        return NotImplemented
    if gradient.device.type == "cpu" and not overflows(gradient):
        return torch.zeros(gradient.shape, dtype=torch.bool)
    return torch.cat([tile.isnan() for _, tile in gradient.tiles()])


# Dense by nature.


@implements(aten.clone.default)
def clone(gradient: FactoredGradient, *, memory_format: Any = None) -> Tensor:  # SGD's first momentum buffer
    return gradient.to_dense()


def made_like(operation: Any, gradient: FactoredGradient, *arguments: Any, **options: Any) -> Tensor:
    """A new tensor that takes only shape, dtype and device from the gradient."""
    prototype = torch.empty((), dtype=gradient.dtype, device=gradient.device).expand(gradient.shape)
    return operation(prototype, *arguments, **options)


for _overload in (
    aten.empty_like.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.new_empty.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
):
    implements(_overload)(partial(made_like, _overload))
