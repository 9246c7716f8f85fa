"""The formulas of the losses that the page knows. One is shown only where it gives the numbers that the step computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from manualgrad.explain.page.mathml import Math, fraction, identifier, literal, operator, row, squared, sum_over
from manualgrad.explain.page.quantities import targets_as_rows
from manualgrad.explain.traced_step import TracedStep
from manualgrad.losses.loss import BinaryCrossEntropyLoss, QuadraticLoss, SoftmaxCrossEntropyLoss


Parts = Sequence["Math | str"]


@dataclass(frozen=True)
class Formula:
    """C, and dC/da = factor (p - y) / count: all these losses have an output gradient of this form, with p a function of a.

    Written, i counts the r examples and k the outputs; N is the number of all outputs.
    """

    cost: Callable[[Math, Math], Parts]  # as written, given the symbols of a and y
    value: Callable[[Tensor, Tensor], Tensor]
    count: str  # "r" or "N"
    factor: int = 1
    function: str | None = None  # the name of p, where that is not a itself
    prediction: Callable[[Tensor], Tensor] = lambda a: a  # p from a of shape (r, k)

    def gradient(self, p: Math, y: Math) -> Parts:
        difference = row(p, "−", y)
        return (_over(difference if self.factor == 1 else row(literal(self.factor), "(", difference, ")"), self.count),)

    def divisor(self, a: Tensor) -> int:
        return len(a) if self.count == "r" else a.numel()

    def slope(self, a: Tensor, y: Tensor) -> Tensor:
        return self.factor * (self.prediction(a) - y) / self.divisor(a)


def formula_of(traces: Sequence[TracedStep]) -> Formula | None:
    """The formula that gives every trace's loss and output gradient, or None."""
    finite = [trace for trace in traces if trace.loss.isfinite()]  # a NaN would agree with any formula
    for formula in _FORMULAS:
        if finite and all(_gives(formula, trace) for trace in finite):
            return formula
    return None


def _gives(formula: Formula, trace: TracedStep) -> bool:
    outputs = trace.outputs.double()
    targets = trace.targets.double() if trace.targets.shape == outputs.shape else trace.targets
    rows = targets_as_rows(trace).double()
    if outputs.numel() != rows.numel():
        return False
    try:
        value = formula.value(outputs, targets)
    except (RuntimeError, ValueError, TypeError):
        return False  # not a loss for outputs and targets of these shapes
    slope = formula.slope(outputs.reshape(rows.shape), rows).reshape(outputs.shape)
    tolerance = 16 * torch.finfo(trace.outputs.dtype).eps
    largest = slope.abs().max().item()
    pairs = ((value, trace.loss, tolerance), (slope, trace.output_gradient, tolerance * largest))
    return all(torch.allclose(x, y.double(), rtol=tolerance, atol=atol, equal_nan=True) for x, y, atol in pairs)


def _mean_squared(outputs: Tensor, targets: Tensor) -> Tensor:
    QuadraticLoss().check(outputs, targets)  # nothing is broadcast
    return F.mse_loss(outputs, targets)


_LOG = row(identifier("log"), Math("mspace", (), {"width": "0.17em"}))


def _squares(a: Math, y: Math) -> Parts:
    return (sum_over("i,k"), squared(row("(", a, "−", y, ")")))


def _logarithms(a: Math, y: Math) -> Parts:
    return (sum_over("i,k"), y, _LOG, _of("softmax", a))


def _both_logarithms(a: Math, y: Math) -> Parts:
    one, log, sigma = literal(1), _LOG, _of("σ", a)
    return (sum_over("i,k"), y, log, sigma, "+", "(", one, "−", y, ")", log, "(", one, "−", sigma, ")")


def _of(function: str, a: Math) -> Math:
    return row(identifier(function), "(", a, ")")


def _over(x: Math | str, count: str) -> Math:
    return fraction(row(x), identifier(count))


_ONE = literal(1)
_FORMULAS = (
    Formula(
        cost=lambda a, y: (fraction(_ONE, row(literal(2), identifier("r"))), *_squares(a, y)),
        value=QuadraticLoss(),
        count="r",
    ),
    Formula(cost=lambda a, y: (_over(_ONE, "N"), *_squares(a, y)), value=_mean_squared, count="N", factor=2),
    Formula(
        cost=lambda a, y: (operator("−"), _over(_ONE, "r"), *_logarithms(a, y)),
        value=SoftmaxCrossEntropyLoss(),
        count="r",
        function="softmax",
        prediction=lambda a: torch.softmax(a, 1),
    ),
    Formula(
        cost=lambda a, y: (operator("−"), _over(_ONE, "N"), *_both_logarithms(a, y)),
        value=BinaryCrossEntropyLoss(),
        count="N",
        function="σ",
        prediction=torch.sigmoid,
    ),
)
