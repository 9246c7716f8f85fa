"""Exercises of notebook 1: forward pass and loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .exercise import A, B, Exercise, W, numbers, output


def layer(a: Tensor, w: Tensor, b: Tensor) -> Tensor:
    z = a @ w.T + b  # (r, n) (n, m) + (m,)
    return torch.sigmoid(z)


def cost(a: Tensor, y: Tensor) -> Tensor:
    of_each_example = 0.5 * ((a - y) ** 2).sum(1)  # (r,)
    return of_each_example.mean()


LAYER = Exercise(
    solution=layer,
    inputs=(A, W, B),
    layer=output,
    reference=lambda a, w, b: torch.sigmoid(F.linear(a, w, b)),
    names=("the output",),
    is_backward=False,
    mistakes={
        "sigma is missing: you return z, and a layer hands on a = sigma(z): look at what you return.": lambda a, w, b: (
            a @ w.T + b
        ),
        "b is missing: look at the line of z = w a + b.": lambda a, w, b: torch.sigmoid(a @ w.T),
        "b stands outside sigma: it is a part of z, so look at the brackets.": lambda a, w, b: (
            torch.sigmoid(a @ w.T) + b
        ),
        "The transpose of w is missing: a is (r, n) and w (m, n), and only a @ w.T joins n to n.": lambda a, w, b: (
            torch.sigmoid(a @ w + b)
        ),
        "w @ a is the formula for one example as a column; here the examples are rows of a: write a @ w.T.": (
            lambda a, w, b: torch.sigmoid(w @ a + b)
        ),
    },
)
COST = Exercise(
    solution=cost,
    inputs=numbers((5, 3), (5, 3)),
    layer=output,
    reference=lambda a, y: F.mse_loss(a, y) * (y.size(1) / 2),
    names=("C",),
    is_backward=False,
    mistakes={
        "The factor 1/2 is missing: your C is twice the cost.": lambda a, y: ((a - y) ** 2).sum(1).mean(),
        "The mean is taken over the outputs too: add up the outputs of an example, sum(1), before the mean.": (
            lambda a, y: 0.5 * ((a - y) ** 2).mean()
        ),
        "The mean over the batch is missing: you add up the examples, so C would grow with their number.": lambda a, y: (
            0.5 * ((a - y) ** 2).sum()
        ),
        "You return a cost for each example: C is one number, their mean.": lambda a, y: 0.5 * ((a - y) ** 2).sum(1),
        "The square is missing: differences of both signs cancel, so look at the power.": lambda a, y: (
            0.5 * (a - y).sum(1).mean()
        ),
    },
)

EXERCISES = [LAYER, COST]
