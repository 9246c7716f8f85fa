"""Exercises of notebook 2: output error."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .exercise import OF_LAYER, A, B, Exercise, W, Y, Z, by_hand, given, quadratic, sigmoid_slope, with_slope


def output_error(a: Tensor, y: Tensor, z: Tensor) -> Tensor:
    r = len(a)
    slope = torch.sigmoid(z) * (1 - torch.sigmoid(z))  # sigma'(z)
    return (a - y) / r * slope


def tanh_slope(z: Tensor) -> Tensor:
    return 1 - torch.tanh(z) ** 2


OUTPUT_ERROR = Exercise(
    solution=output_error,
    inputs=(Z,),
    layer=lambda function: by_hand(
        lambda z: quadratic(torch.sigmoid(z), Y),
        lambda g, z: (g * given(function, torch.sigmoid(z), Y, z),),
        ("delta",),
    ),
    reference=lambda z: quadratic(torch.sigmoid(z), Y),
    names=("delta",),
    mistakes={
        "sigma'(z) is missing: you return dC/da, and delta is dC/dz, one factor more.": lambda a, y, z: (
            (a - y) / len(a)
        ),
        "The sign is wrong: dC/da is a - y, not y - a.": lambda a, y, z: (y - a) / len(a) * sigmoid_slope(z),
        "The mean over the batch is missing: C is a mean over r examples, so dC/da is (a - y) / r.": lambda a, y, z: (
            (a - y) * sigmoid_slope(z)
        ),
        "sigma' is taken at a instead of z: sigma'(z) is a (1 - a), or sigmoid(z) (1 - sigmoid(z)).": lambda a, y, z: (
            (a - y) / len(a) * sigmoid_slope(a)
        ),
        "The mean is taken over the outputs too: divide by the number of examples, len(a), alone.": lambda a, y, z: (
            (a - y) / a.numel() * sigmoid_slope(z)
        ),
    },
)


TANH_SLOPE = Exercise(
    solution=tanh_slope,
    inputs=(A, W, B),
    layer=with_slope(torch.tanh),
    reference=lambda a, w, b: torch.tanh(F.linear(a, w, b)),
    names=OF_LAYER,
    mistakes={
        "You took z for a: the slope is 1 - a^2 with a = tanh(z).": lambda z: 1 - z**2,
        "That is the sigmoid's rule, a (1 - a): tanh has another, 1 - a^2.": lambda z: (
            torch.tanh(z) * (1 - torch.tanh(z))
        ),
        "The square is missing: the slope is 1 - tanh(z)^2.": lambda z: 1 - torch.tanh(z),
        "That is tanh itself: its slope by z is wanted.": lambda z: torch.tanh(z),
    },
)

EXERCISES = [OUTPUT_ERROR, TANH_SLOPE]
