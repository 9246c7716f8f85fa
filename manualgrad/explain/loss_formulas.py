"""The formulas of the losses that the page knows. One is shown only where it gives the numbers that the step computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from manualgrad.explain.mathml import Math, fraction, identifier, literal, operator, row, squared, sum_over
from manualgrad.explain.quantities import targets_as_rows
from manualgrad.losses import BinaryCrossEntropyLoss, QuadraticLoss, SoftmaxCrossEntropyLoss


if TYPE_CHECKING:
    from manualgrad.trace import Trace

Parts = Sequence["Math | str"]


@dataclass(frozen=True)
class Formula:
    """C and dC/da, each as written, given the symbols of a and y, and as computed.

    Written, i counts the r examples and k the outputs; N is the number of all outputs. `slope` takes (r, k) tensors.
    """

    cost: Callable[[Math, Math], Parts]
    gradient: Callable[[Math, Math], Parts]
    value: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]
    is_difference: bool = False  # whether dC/da is (a - y) / r


def formula_of(traces: Sequence[Trace]) -> Formula | None:
    """The formula that gives every trace's loss and output gradient, or None."""
    for formula in _FORMULAS:
        if all(_gives(formula, trace) for trace in traces):
            return formula
    return None


def _gives(formula: Formula, trace: Trace) -> bool:
    outputs = trace.outputs.double()
    targets = trace.targets.double() if trace.targets.shape == outputs.shape else trace.targets
    rows = targets_as_rows(trace).double()
    if outputs.dim() > 2 or outputs.numel() != rows.numel():
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


def _squares(a: Math, y: Math) -> Parts:
    return (sum_over("i,k"), squared(row("(", a, "−", y, ")")))


def _logarithms(a: Math, y: Math) -> Parts:
    return (sum_over("i,k"), y, identifier("log"), _of("softmax", a))


def _both_logarithms(a: Math, y: Math) -> Parts:
    one, log, sigma = literal(1), identifier("log"), _of("σ", a)
    return (sum_over("i,k"), y, log, sigma, "+", "(", one, "−", y, ")", log, "(", one, "−", sigma, ")")


def _of(function: str, a: Math) -> Math:
    return row(identifier(function), "(", a, ")")


def _over(x: Math | str, count: str) -> Math:
    return fraction(row(x), identifier(count))


_ONE = literal(1)
_FORMULAS = (
    Formula(
        cost=lambda a, y: (fraction(_ONE, row(literal(2), identifier("r"))), *_squares(a, y)),
        gradient=lambda a, y: (_over(row(a, "−", y), "r"),),
        value=QuadraticLoss(),
        slope=lambda a, y: (a - y) / len(a),
        is_difference=True,
    ),
    Formula(
        cost=lambda a, y: (_over(_ONE, "N"), *_squares(a, y)),
        gradient=lambda a, y: (_over(row(literal(2), "(", a, "−", y, ")"), "N"),),
        value=_mean_squared,
        slope=lambda a, y: 2 * (a - y) / a.numel(),
    ),
    Formula(
        cost=lambda a, y: (operator("−"), _over(_ONE, "r"), *_logarithms(a, y)),
        gradient=lambda a, y: (_over(row(_of("softmax", a), "−", y), "r"),),
        value=SoftmaxCrossEntropyLoss(),
        slope=lambda a, y: (torch.softmax(a, 1) - y) / len(a),
    ),
    Formula(
        cost=lambda a, y: (operator("−"), _over(_ONE, "N"), *_both_logarithms(a, y)),
        gradient=lambda a, y: (_over(row(_of("σ", a), "−", y), "N"),),
        value=BinaryCrossEntropyLoss(),
        slope=lambda a, y: (torch.sigmoid(a) - y) / a.numel(),
    ),
)
