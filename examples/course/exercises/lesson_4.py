"""Exercises of notebook 4: gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .exercise import A, B, Exercise, Function, W, by_hand, given, numbers, quadratic


def gradients(delta: Tensor, a: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return delta.T @ a, delta.sum(0), delta @ w  # dC/dw, dC/db, dC/da


def slope(cost: Function, w: Tensor, i: int, j: int, eps: float = 1e-4) -> Tensor:
    up, down = w.clone(), w.clone()
    up[i, j] += eps
    down[i, j] -= eps
    return (cost(up) - cost(down)) / (2 * eps)


_LAYER_GRADIENTS = ("dC/dw", "dC/db", "dC/da")


def _gradients(function: Function) -> Function:
    return by_hand(
        lambda w, b, a: F.linear(a, w, b), lambda g, w, b, a: tuple(given(function, g, a, w)), _LAYER_GRADIENTS
    )


GRADIENTS = Exercise(
    solution=gradients,
    inputs=(W, B, A),
    layer=_gradients,
    reference=lambda w, b, a: F.linear(a, w, b),
    names=_LAYER_GRADIENTS,
    mistakes={
        "dC/dw is turned round: a.T @ delta is (n, m), and w is (m, n): delta.T @ a.": lambda d, a, w: (
            a.T @ d,
            d.sum(0),
            d @ w,
        ),
        "The mean is taken twice: delta has the 1/r of the mean already, so add the examples up.": lambda d, a, w: (
            d.T @ a / len(a),
            d.mean(0),
            d @ w,
        ),
        "The mean is taken twice in dC/dw: delta has the 1/r of the mean already, so do not divide by r.": lambda d, a, w: (
            d.T @ a / len(a),
            d.sum(0),
            d @ w,
        ),
        "The mean is taken twice in dC/db: delta has the 1/r of the mean already, so sum(0), not mean(0).": lambda d, a, w: (
            d.T @ a,
            d.mean(0),
            d @ w,
        ),
        "dC/db is not added up: b is shared by all examples, so sum delta over them, sum(0).": lambda d, a, w: (
            d.T @ a,
            d,
            d @ w,
        ),
        "dC/db is added up along the wrong axis: axis 0 counts the examples, axis 1 the neurons.": lambda d, a, w: (
            d.T @ a,
            d.sum(1),
            d @ w,
        ),
        "The order is wrong: return dC/dw, dC/db, dC/da.": lambda d, a, w: (d @ w, d.T @ a, d.sum(0)),
    },
)


def _cost_of(w: Tensor) -> Tensor:
    return quadratic(torch.sigmoid(A @ w.T), numbers((5, 4))[0])


def _slopes(function: Function) -> Function:
    def of_all(w: Tensor) -> Tensor:
        entries = [(i, j) for i in range(w.size(0)) for j in range(w.size(1))]
        return torch.stack([given(lambda w, i, j: function(_cost_of, w, i, j), w, i, j) for i, j in entries]).view_as(w)

    return of_all


def _moved(w: Tensor, i: int, j: int, by: float) -> Tensor:
    w = w.clone()
    w[i, j] += by
    return w


def _by_autograd(cost: Function, w: Tensor, i: int, j: int) -> Tensor:
    with torch.enable_grad():
        leaf = w.clone().requires_grad_()
        return torch.autograd.grad(cost(leaf), leaf)[0][i, j]


SLOPE = Exercise(
    solution=slope,
    inputs=(W,),
    layer=_slopes,
    reference=_by_autograd,
    names=("dC/dw",),
    is_backward=False,
    tolerance=1e-7,
    mistakes={
        "The difference is one-sided, and wrong by about eps; C(w + eps) - C(w - eps) over 2 eps is wrong by eps^2.": (
            lambda cost, w, i, j, eps=1e-4: (cost(_moved(w, i, j, eps)) - cost(w)) / eps
        ),
        "You divide by eps: from w - eps to w + eps it is 2 eps.": lambda cost, w, i, j, eps=1e-4: (
            (cost(_moved(w, i, j, eps)) - cost(_moved(w, i, j, -eps))) / eps
        ),
        "You move all of w at once: only the entry [i, j] moves, the others stay.": lambda cost, w, i, j, eps=1e-4: (
            (cost(w + eps) - cost(w - eps)) / (2 * eps)
        ),
        "The sign is wrong: C(w + eps) comes first.": lambda cost, w, i, j, eps=1e-4: (
            (cost(_moved(w, i, j, -eps)) - cost(_moved(w, i, j, eps))) / (2 * eps)
        ),
        "i and j are the wrong way round: w[i, j] is row i, column j.": lambda cost, w, i, j, eps=1e-4: (
            (cost(_moved(w, j, i, eps)) - cost(_moved(w, j, i, -eps))) / (2 * eps)
        ),
        "After w + eps you go back by eps only, which is w itself: from there to w - eps it is one more eps.": (
            lambda cost, w, i, j, eps=1e-4: (cost(_moved(w, i, j, eps)) - cost(w)) / (2 * eps)
        ),
    },
)

EXERCISES = [GRADIENTS, SLOPE]
