"""Measure by how much two computations of one gradient differ, and whether rounding explains it."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from numbers import Real

import torch
from torch import Tensor

from manualgrad.comparison.result import Row
from manualgrad.comparison.rounding import Rounding, rounding
from manualgrad.factored.gradient import FactoredGradient


# What rounding may do to a gradient, relative to its entries.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
TOLERANCE |= {torch.complex128: 1e-12, torch.complex64: 1e-5}
# Two right computations of one entry have come to no more than 8 rounding errors of its terms apart; these are allowed.
_APART, _ERRORS = 8, 32


def check_tolerance(tolerance: float | None, caller: str) -> None:
    """Raises ValueError unless it is a number >= 0, or None."""
    if tolerance is not None and not (isinstance(tolerance, Real) and tolerance >= 0):
        raise ValueError(
            f"{caller} expected `tolerance` to be a number >= 0 or None, got {tolerance!r}. Pass for example tolerance=1e-5."
        )


def coarsest(tensors: Iterable[Tensor]) -> torch.dtype:
    """The dtype that rounds most among the floating point ones of these, and autocast's where it is on; else float32."""
    floating = [x for x in tensors if x.is_floating_point() or x.is_complex()]
    dtypes = {x.dtype for x in floating}
    autocast = {x.device.type for x in floating if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)}
    dtypes |= {torch.get_autocast_dtype(device) for device in autocast}
    return max(dtypes & TOLERANCE.keys(), key=lambda dtype: TOLERANCE[dtype], default=torch.float32)


def widened(x: Tensor) -> Tensor:
    """`x` in float64 or complex128; integers and booleans as they are."""
    if x.is_complex():
        return x.to(torch.complex128)
    return x.to(torch.float64) if x.is_floating_point() else x


def judged(
    names: Sequence[str],
    by_hand: Sequence[Tensor],
    autograd: Sequence[Tensor],
    truth: Sequence[Tensor] | None,
    dtype: torch.dtype,
    tolerance: float | None,
    again: Callable[[], Sequence[Tensor]] | None,
) -> list[Row]:
    """A row for each gradient: by hand, by autograd, and by autograd in float64, if that could be had.

    `dtype` is the one that rounds most in the computation, and decides the tolerance if that is None. `again` computes the truth
    once more, or what autograd found if there is none: to measure what rounding does, where a verdict is in doubt.
    """
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    truths: Sequence[Tensor | None] = truth or [None] * len(names)
    given = list(zip(names, by_hand, autograd, truths, strict=True))
    rows = [row(*each, tolerance) for each in given]
    sizes = [_largest(each) for each in (autograd if truth is None else truth)]
    small = 1e3 * torch.finfo(dtype).eps * max(sizes, default=0.0)  # beside the others: rounding may be all there is
    doubtful = [
        i
        for i, each in enumerate(rows)
        if not each.shows_nothing and (not each.ok or each.error_by_autograd > 0.1 or 0 < sizes[i] < small)
    ]
    if not doubtful or again is None:
        return rows
    with suppress(Exception):  # what does not run with errors in it is judged without
        exact = [widened((autograd if truth is None else truth)[i]) for i in doubtful]
        unit = torch.finfo(dtype).eps
        # Where the exact gradients are rounded themselves, errors of their size would not show.
        errors = unit if truth is not None and unit > torch.finfo(torch.float64).eps else 16 * unit
        found = rounding(lambda: [g for i, g in enumerate(again()) if i in doubtful], exact, unit, errors)
        for i, measured in zip(doubtful, found, strict=True):
            rows[i] = row(*given[i], tolerance, measured)
    return rows


def row(
    name: str,
    by_hand: Tensor,
    autograd: Tensor,
    truth: Tensor | None,
    tolerance: float,
    measured: Rounding | None = None,
) -> Row:
    """The verdict on one gradient; all tensors have one shape.

    Each entry by hand may differ from autograd's, or from the truth, by the tolerance times its own size, or the mean size if
    that is larger; and by what rounding does to its terms, if that has been measured. Where it has not, a gradient whose terms
    cancel is judged too strictly.
    """
    factored = isinstance(by_hand, FactoredGradient) and not by_hand.is_dense
    if isinstance(by_hand, FactoredGradient):
        by_hand = by_hand.to_dense()
    by_hand, autograd = widened(by_hand), widened(autograd)
    best = autograd if truth is None else truth
    allowed, scale, zero = _allowed(best, tolerance, measured), _largest(best), False
    if measured is not None and scale <= _APART * measured.unit * _largest(measured.terms):
        scale, zero = _largest(measured.terms), True
    off = _differences(by_hand, autograd)
    off_truth = off if truth is None else _differences(by_hand, truth)
    difference = _largest(off, finite=False)
    ok = bool(((off <= allowed) | (off_truth <= allowed)).all())
    errors = (math.nan, math.nan)  # by hand and by autograd
    if truth is not None:
        largest = [_largest(_differences(x, truth), finite=False) for x in (by_hand, autograd)]
        errors = (_relative(largest[0], scale), _relative(largest[1], scale))
    relative = _relative(difference, scale if zero else _largest(autograd))
    not_finite = int((~by_hand.isfinite() & _same(by_hand, autograd)).sum())
    if 0 < not_finite == autograd.numel():  # a difference of 0 would claim what nobody has seen
        difference, relative, ok = math.nan, math.nan, False
        if truth is None or not truth.isfinite().any():
            errors = (math.nan, math.nan)
    return Row(name, tuple(autograd.shape), difference, relative, *errors, ok, factored, not_finite, zero and ok)


def _allowed(gradient: Tensor, tolerance: float, measured: Rounding | None) -> Tensor:
    """How much rounding may change each entry."""
    sizes = gradient.abs().nan_to_num(nan=0.0, posinf=0.0)
    allowed = tolerance * torch.maximum(sizes, sizes.mean()) if sizes.numel() else sizes
    if measured is None:
        return allowed
    # Two right computations may be on either side of a kink. The median of a few runs may be small by chance; the mean is not.
    terms = torch.maximum(measured.terms, measured.terms.mean())
    errors = min(_ERRORS, tolerance / measured.unit)
    return allowed + errors * measured.unit * terms + min(errors, 2) * measured.jump


def _largest(x: Tensor, finite: bool = True) -> float:
    """max |x|, over the finite entries; 0 if there are none."""
    x = x[torch.isfinite(x)] if finite else x
    return float(x.abs().max()) if x.numel() else 0.0


def _differences(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|. Equal infinities and NaN on both sides differ by 0; infinity or NaN on one side only, by infinity."""
    return (x - y).abs().nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(_same(x, y), 0.0)


def _same(x: Tensor, y: Tensor) -> Tensor:
    return (x == y) | (x.isnan() & y.isnan())


def _relative(difference: float, scale: float) -> float:
    if difference == 0:
        return 0.0
    return difference / scale if scale > 0 else math.inf
