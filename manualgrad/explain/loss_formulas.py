"""The formulas of well-known losses, found by their numbers: one is named only where it gives what the step computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from manualgrad.explain.traced_step import TracedStep, as_rows
from manualgrad.losses.cross_entropy import BinaryCrossEntropyLoss, SoftmaxCrossEntropyLoss
from manualgrad.losses.quadratic import QuadraticLoss


@dataclass(frozen=True)
class Formula:
    """C by name, and dC/da = factor (p - y) / count: all these losses have an output gradient of this form.

    p is a function of a. r counts the examples, N all outputs.
    """

    name: str
    value: Callable[[Tensor, Tensor], Tensor]
    count: str  # "r" or "N"
    factor: int = 1
    function: str | None = None  # the name of p, where that is not a itself
    prediction: Callable[[Tensor], Tensor] = lambda a: a  # p from a of shape (r, k)

    def slope(self, a: Tensor, y: Tensor) -> Tensor:
        """dC/da."""
        return self.factor * (self.prediction(a) - y) / (len(a) if self.count == "r" else a.numel())


def formula_of(traces: Sequence[TracedStep]) -> Formula | None:
    """The formula that gives every trace's loss and output gradient, or None."""
    finite = [trace for trace in traces if trace.loss.isfinite()]  # a NaN would agree with any formula
    fitting = (formula for formula in _FORMULAS if finite and all(_gives(formula, trace) for trace in finite))
    return next(fitting, None)


def are_class_indices(trace: TracedStep) -> bool:
    outputs, targets = trace.outputs, trace.targets
    return not targets.is_floating_point() and outputs.dim() == targets.dim() + 1 and outputs.dim() <= 2


def targets_as_rows(trace: TracedStep) -> Tensor:
    """y, a row for each example. Class indices become one-hot rows, those left out of the mean (negative) rows of zeros."""
    targets = trace.targets
    if are_class_indices(trace):
        classes = torch.arange(trace.outputs.size(-1), device=targets.device)
        return (targets.reshape(-1, 1) == classes).double()
    return per_example(targets, trace)


def per_example(x: Tensor, trace: TracedStep) -> Tensor:
    """Outputs or targets: rows as the last layer has them if they go with its rows, else a row for each entry of axis 0."""
    last = trace.layers[-1].a
    if last.shape[:-1] == trace.outputs.shape[:-1] and x.shape == trace.outputs.shape:
        return as_rows(x)
    rows = trace.outputs.size(0) if trace.outputs.dim() > 1 else 1
    return x.reshape(rows, -1) if x.numel() and x.numel() % rows == 0 else x.reshape(1, -1)


def _gives(formula: Formula, trace: TracedStep) -> bool:
    if trace.outputs.is_complex() or trace.targets.is_complex():
        return False
    outputs = trace.outputs.double()
    targets = trace.targets.double() if trace.targets.shape == outputs.shape else trace.targets
    rows = targets_as_rows(trace).double()
    if outputs.numel() != rows.numel() or outputs.numel() == 0:
        return False
    try:
        value = formula.value(outputs, targets)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False  # not a loss for outputs and targets of these shapes
    slope = formula.slope(outputs.reshape(rows.shape), rows).reshape(outputs.shape)
    tolerance = 16 * torch.finfo(trace.outputs.dtype).eps
    largest = slope.abs().max().item()
    pairs = ((value, trace.loss, tolerance), (slope, trace.output_gradient, tolerance * largest))
    return all(torch.allclose(x, y.double(), rtol=tolerance, atol=atol, equal_nan=True) for x, y, atol in pairs)


def _mean_squared(outputs: Tensor, targets: Tensor) -> Tensor:
    QuadraticLoss().check(outputs, targets)  # nothing is broadcast
    return F.mse_loss(outputs, targets)


_FORMULAS = (
    Formula("quadratic", QuadraticLoss(), "r"),
    Formula("mean squared", _mean_squared, "N", 2),
    Formula("cross-entropy", SoftmaxCrossEntropyLoss(), "r", 1, "softmax", lambda a: torch.softmax(a, 1)),
    Formula("binary cross-entropy", BinaryCrossEntropyLoss(), "N", 1, "σ", torch.sigmoid),
)
