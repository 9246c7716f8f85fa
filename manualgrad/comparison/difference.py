"""Measure by how much two computations of one gradient differ, and whether rounding explains it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manualgrad.comparison.result import Row
from manualgrad.factored.gradient import FactoredGradient


# What rounding may do to a gradient, relative to its largest entry.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.complex128: 1e-12,
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}


def widened(x: Tensor) -> Tensor:
    """`x` in float64 or complex128; integers and booleans as they are."""
    if x.is_complex():
        return x.to(torch.complex128)
    return x.to(torch.float64) if x.is_floating_point() else x


def row(name: str, by_hand: Tensor, autograd: Tensor, truth: Tensor, tolerance: float | None = None) -> Row:
    """The verdict on one gradient: by hand, by autograd, and by autograd in float64, all of one shape."""
    if tolerance is None:
        tolerance = TOLERANCE[autograd.dtype]
    factored = isinstance(by_hand, FactoredGradient) and not by_hand.is_dense
    if isinstance(by_hand, FactoredGradient):
        by_hand = by_hand.to_dense()
    difference, scale = _largest_difference(by_hand, autograd), _largest(autograd)
    error_by_hand = _relative(_largest_difference(by_hand, truth), _largest(truth))
    error_by_autograd = _relative(_largest_difference(autograd, truth), _largest(truth))
    relative = _relative(difference, scale)
    ok = relative <= tolerance or error_by_hand <= 2 * error_by_autograd < 1  # beyond 1 the truth tells nothing
    not_finite = int((~by_hand.isfinite() & _same(by_hand, autograd)).sum())
    if 0 < not_finite == autograd.numel():  # a difference of 0 would claim what nobody has seen
        difference, relative, ok = math.nan, math.nan, False
        if not truth.isfinite().any():
            error_by_hand = error_by_autograd = math.nan
    errors = (difference, relative, error_by_hand, error_by_autograd)
    return Row(name, tuple(autograd.shape), *errors, ok, factored, not_finite)


def _largest(x: Tensor) -> float:
    """max |x| over the finite entries; 0 if there are none."""
    x = x[torch.isfinite(x)]
    return float(x.abs().max()) if x.numel() else 0.0


def _largest_difference(x: Tensor, y: Tensor) -> float:
    """max |x - y|. Equal infinities and NaN on both sides differ by 0; infinity or NaN on one side only, by infinity."""
    x, y = widened(x), widened(y)
    differences = (x - y).abs()[~_same(x, y)].nan_to_num(nan=math.inf, posinf=math.inf)
    return float(differences.max()) if differences.numel() else 0.0


def _same(x: Tensor, y: Tensor) -> Tensor:
    return (x == y) | (x.isnan() & y.isnan())


def _relative(difference: float, scale: float) -> float:
    if difference == 0:
        return 0.0
    return difference / scale if scale > 0 else float("inf")
