"""Describe in words how a tensor differs from the expected one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from manualgrad.comparison.difference import coarsest, judged
from manualgrad.conformance.case import is_differentiable
from manualgrad.conformance.result import Failed


BOTH_LINE = (
    "print(*(torch.autograd.grad(f(*inputs).abs().square().sum(), wanted) for f in (layer, reference)), sep='\\n')"
)
GRADIENT_LINE = "for f in (layer, reference): print(torch.autograd.grad(f(*inputs).abs().square().sum(), wanted))"


def first_difference(
    names: Sequence[str],
    actual: Sequence[Tensor],
    expected: Sequence[Tensor],
    exact: Callable[[], Sequence[Tensor]] | None = None,
    tolerance: float | None = None,
) -> str | None:
    """A sentence about the first tensor that differs by more than rounding, or None.

    `exact` computes in float64 what is expected: rounding is judged by it, and measured by running it with errors.
    """
    if len(actual) != len(expected):
        return f"{len(actual)} tensors, expected {len(expected)}"
    for name, a, e in zip(names, actual, expected, strict=True):
        if a.dtype != e.dtype:
            return f"{name} is {a.dtype}, expected {e.dtype}"
        if a.shape != e.shape:
            return f"{name} {wrong_shape(a.shape, e.shape)}"
        if not is_differentiable(e) and not torch.equal(a, e):
            return f"{name} is wrong"
    which = [i for i, e in enumerate(expected) if is_differentiable(e)]

    def chosen(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensors[i].detach() for i in which]

    names, actual, expected = [names[i] for i in which], chosen(actual), chosen(expected)
    wide = None if exact is None else lambda: chosen(exact())
    rows = judged(names, actual, expected, wide and wide(), coarsest(expected), tolerance, wide)
    for row, a, e in zip(rows, actual, expected, strict=True):
        if not (row.ok or row.shows_nothing):  # NaN or infinite alike is as it should be
            return f"{row.name} {_wrong_value(a, e)}"
    return None


def wrong_shape(came: Sequence[int], expected: Sequence[int]) -> str:
    """A sentence about the wrong shape, with what the backward pass has probably missed."""
    shapes = f"has shape {tuple(came)}, expected {tuple(expected)}"
    if len(came) > 1 and tuple(came) == (*expected[:-2], *expected[:-3:-1]):
        return f"{shapes}: a transpose is missing"
    if len(came) > len(expected) and tuple(came[len(came) - len(expected) :]) == tuple(expected):
        return f"{shapes}: a sum over the batch is missing"
    return shapes


def _wrong_value(actual: Tensor, expected: Tensor) -> str:
    if not bool(actual.isfinite().all()) and bool(expected.isfinite().all()):
        return "is not finite"
    scale = expected.abs().max()
    if scale == 0:
        return f"is wrong: expected 0, got up to {float(actual.abs().max()):.2g}"
    if not actual.any():
        return "is 0 where it should not be"
    if actual.dim() == 2 and actual.size(0) == actual.size(1) and _close(actual.t(), expected):
        return "is the transpose of what it should be: a transpose is missing"
    if actual.is_complex() and _close(actual.conj(), expected):
        return "is the conjugate of what it should be: a conjugate is missing"
    ratio = (actual * expected.conj()).sum() / (expected * expected.conj()).sum()
    if ratio.abs() > 0 and abs(complex(ratio) - 1) > 1e-3 and _close(actual, ratio * expected):
        number = complex(ratio) if ratio.is_complex() else float(ratio)
        return f"is {number:.4g} times what it should be" + (": the sign is wrong" if abs(number + 1) < 1e-3 else "")
    return f"is wrong by {float((actual - expected).abs().max() / scale):.1e} of its largest entry"


def _close(x: Tensor, y: Tensor) -> bool:
    return bool((x - y).abs().max() <= 1e-3 * y.abs().max())


def expect_equal(
    names: Sequence[str],
    actual: Sequence[Tensor],
    expected: Sequence[Tensor],
    exact: Callable[[], Sequence[Tensor]] | None = None,
    *,
    line: str = "",
    note: str = "",
    tolerance: float | None = None,
    inputs: Sequence[Any] | None = None,
) -> None:
    """Raises Failed, with a sentence about the first difference."""
    difference = first_difference(names, actual, expected, exact, tolerance)
    if difference is not None:
        raise Failed(difference + note, line, inputs)
