"""Exercises of notebook 7: what goes wrong."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .exercise import A, Exercise, Function, Y, Z, by_hand, given, numbers, output, quadratic, sigmoid_slope


def mended(g: Tensor, a: Tensor, w: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    delta = g * (1 - torch.tanh(z) ** 2)
    return delta.T @ a, delta.sum(0), delta @ w


def other_cost(a: Tensor, y: Tensor) -> Tensor:
    return -(y * torch.log(a) + (1 - y) * torch.log(1 - a)).sum(1).mean()


def _faulty(slope: bool, mean: bool, transpose: bool) -> Function:
    """The backward pass of the notebook with these of its three faults left in."""

    def backward(g: Tensor, a: Tensor, w: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        delta = g * (sigmoid_slope(z) if slope else 1 - torch.tanh(z) ** 2)
        return delta.T @ a / (len(a) if mean else 1), delta.sum(0), delta @ (w.T if transpose else w)

    return backward


_FAULTS = (
    "the activation is tanh, and the slope is the sigmoid's (the line of delta)",
    "dC/dw takes the mean a second time, which delta has in it already",
    "dC/da has a transpose too many, which fits only because w is square",
)


def _remaining() -> dict[str, Function]:
    """A sentence for each way to leave some of the faults in."""
    sentences = {}
    for which in range(1, 8):
        left = [bool(which & 1 << i) for i in range(3)]
        names = "; ".join(fault for fault, there in zip(_FAULTS, left, strict=True) if there)
        sentences[f"{sum(left)} of the 3 faults left: {names}."] = _faulty(*left)
    return sentences


MENDED = Exercise(
    solution=mended,
    inputs=(numbers((3, 3))[0], numbers((3,))[0], A),
    layer=lambda function: by_hand(
        lambda w, b, a: torch.tanh(F.linear(a, w, b)),
        lambda g, w, b, a: tuple(given(function, g, a, w, F.linear(a, w, b))),
        ("dC/dw", "dC/db", "dC/da"),
    ),
    reference=lambda w, b, a: torch.tanh(F.linear(a, w, b)),
    names=("dC/dw", "dC/db", "dC/da"),
    mistakes=_remaining(),
)
OTHER_COST = Exercise(
    solution=other_cost,
    inputs=tuple(torch.sigmoid(x) for x in (Z, Y)),
    layer=output,
    reference=lambda a, y: F.binary_cross_entropy(a, y) * y.size(1),
    names=("C",),
    is_backward=False,
    mistakes={
        "That is the quadratic cost: its slope by z has sigma' in it, and the one wanted has not.": quadratic,
        "Half of it is missing: where y is 0 your cost is 0 for every a, so add (1 - y) log(1 - a).": lambda a, y: (
            -(y * a.log()).sum(1).mean()
        ),
        "The sign is wrong: a logarithm of a number below 1 is negative, and a cost is not.": lambda a, y: (
            (y * a.log() + (1 - y) * (1 - a).log()).sum(1).mean()
        ),
        "The mean is taken over the outputs too: add up the outputs of an example, sum(1), before the mean.": (
            lambda a, y: -(y * a.log() + (1 - y) * (1 - a).log()).mean()
        ),
        "The mean over the batch is missing: you add up the examples.": lambda a, y: (
            -(y * a.log() + (1 - y) * (1 - a).log()).sum()
        ),
    },
)

EXERCISES = [MENDED, OTHER_COST]
