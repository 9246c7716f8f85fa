"""The formulas of the losses that the page knows. One is shown only where it gives the number that the step computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from manualgrad.explain.mathml import Math, fraction, identifier, literal, operator, row, squared, sum_over
from manualgrad.losses import BinaryCrossEntropyLoss, QuadraticLoss, SoftmaxCrossEntropyLoss


if TYPE_CHECKING:
    from manualgrad.trace import Trace

Parts = Sequence["Math | str"]


@dataclass(frozen=True)
class Formula:
    """C and dC/da as written, given the symbols of a and y; `value` computes C to check it."""

    cost: Callable[[Math, Math], Parts]
    gradient: Callable[[Math, Math], Parts]
    value: Callable[[Tensor, Tensor], Tensor]
    is_difference: bool  # whether dC/da is (a - y) / r


def formula_of(traces: Sequence[Trace]) -> Formula | None:
    """The formula that gives every trace's loss, or None."""
    for formula in _FORMULAS:
        if all(_gives(formula, trace) for trace in traces):
            return formula
    return None


def _gives(formula: Formula, trace: Trace) -> bool:
    outputs = trace.outputs.double()
    targets = trace.targets.double() if trace.targets.shape == outputs.shape else trace.targets
    outputs.requires_grad_()
    try:
        with torch.enable_grad():
            value = formula.value(outputs, targets)
        (gradient,) = torch.autograd.grad(value, outputs)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False  # not a loss for outputs and targets of these shapes
    tolerance = 16 * torch.finfo(trace.outputs.dtype).eps
    largest = gradient.abs().max().item()
    return torch.allclose(
        value, trace.loss.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    ) and torch.allclose(
        gradient, trace.output_gradient.double(), rtol=tolerance, atol=tolerance * largest, equal_nan=True
    )


def _mean_over_batch(*parts: Math | str) -> Parts:
    return (fraction(literal(1), identifier("r")), sum_over("i"), *parts)


def _mean_squared(outputs: Tensor, targets: Tensor) -> Tensor:
    QuadraticLoss().check(outputs, targets)  # nothing is broadcast
    return F.mse_loss(outputs, targets)


def _softmax(a: Math) -> Math:
    return row(identifier("softmax"), "(", a, ")")


def _quadratic(a: Math, y: Math) -> Parts:
    return (
        fraction(literal(1), row(literal(2), identifier("r"))),
        sum_over("i"),
        sum_over("k"),
        squared(row("(", a, "−", y, ")")),
    )


def _cross_entropy(a: Math, y: Math) -> Parts:
    return (operator("−"), *_mean_over_batch(sum_over("k"), y, identifier("log"), _softmax(a)))


def _binary(a: Math, y: Math) -> Parts:
    sigma = row(identifier("σ"), "(", a, ")")
    one = literal(1)
    of_ones, of_zeros = (
        row(y, identifier("log"), sigma),
        row("(", one, "−", y, ")", identifier("log"), "(", one, "−", sigma, ")"),
    )
    return (operator("−"), identifier("mean"), "[", of_ones, "+", of_zeros, "]")


_FORMULAS = (
    Formula(_quadratic, lambda a, y: (fraction(row(a, "−", y), identifier("r")),), QuadraticLoss(), True),
    Formula(
        lambda a, y: (identifier("mean"), squared(row("(", a, "−", y, ")"))),
        lambda a, y: (fraction(row(literal(2), "(", a, "−", y, ")"), identifier("N")),),
        _mean_squared,
        False,
    ),
    Formula(
        _cross_entropy,
        lambda a, y: (fraction(row(_softmax(a), "−", y), identifier("r")),),
        SoftmaxCrossEntropyLoss(),
        False,
    ),
    Formula(
        _binary,
        lambda a, y: (fraction(row(identifier("σ"), "(", a, ")", "−", y), identifier("N")),),
        BinaryCrossEntropyLoss(),
        False,
    ),
)
