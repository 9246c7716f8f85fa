"""Exercises of notebook 3: backpropagated error."""

from __future__ import annotations

import torch
from torch import Tensor

from .exercise import Exercise, Function, Z, by_hand, given, numbers, sigmoid_slope


def backpropagated_error(delta_above: Tensor, w_above: Tensor, z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return (delta_above @ w_above) * s * (1 - s)


def all_errors(delta: Tensor, weights: list[Tensor], zs: list[Tensor]) -> list[Tensor]:
    deltas = [delta]
    for w_above, z in zip(reversed(weights[1:]), reversed(zs[:-1]), strict=True):
        s = torch.sigmoid(z)
        deltas.insert(0, (deltas[0] @ w_above) * s * (1 - s))
    return deltas


_DEEP = numbers((3, 3), (3, 3), (3, 3))  # square: here a missing transpose has the right shape


def _of_weight_above(function: Function) -> Function:
    w = numbers((4, 3))[0]
    return by_hand(lambda z: torch.sigmoid(z) @ w.T, lambda g, z: (given(function, g, w, z),), ("delta",))


BACKPROPAGATED_ERROR = Exercise(
    solution=backpropagated_error,
    inputs=(Z,),
    layer=_of_weight_above,
    reference=lambda z: torch.sigmoid(z) @ numbers((4, 3))[0].T,
    names=("delta",),
    mistakes={
        "sigma'(z) is missing: w^T delta is dC/da of this layer, and delta is dC/dz, one factor more.": lambda d, w, z: (
            d @ w
        ),
        "A transpose too many: delta is (r, m) and w (m, n), so delta @ w, as rows, is w^T delta.": lambda d, w, z: (
            (d @ w.T) * sigmoid_slope(z)
        ),
        "w^T delta is the formula for one example as a column; here the examples are rows: delta_above @ w_above.": (
            lambda d, w, z: (w.T @ d) * sigmoid_slope(z)
        ),
        "You multiply by sigma(z), not by its slope sigma'(z).": lambda d, w, z: (d @ w) * torch.sigmoid(z),
        "sigma' is taken at a instead of z: look at what you pass to it.": lambda d, w, z: (
            (d @ w) * sigmoid_slope(torch.sigmoid(z))
        ),
    },
)


def _through(zs: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
    """The z of each layer of a deep net with the given biases, one row for each example, and its outputs."""
    found: list[Tensor] = []
    a = numbers((5, 3))[0]
    for w, b in zip(_DEEP, zs, strict=True):
        found.append(a @ w.T + b)
        a = torch.sigmoid(found[-1])
    return found, a


def _all_errors(function: Function) -> Function:
    def backward(g: Tensor, *biases: Tensor) -> tuple[Tensor, ...]:
        zs, _ = _through(biases)
        return tuple(given(function, g * sigmoid_slope(zs[-1]), list(_DEEP), zs))

    return by_hand(lambda *biases: _through(biases)[1], backward, ("delta^1", "delta^2", "delta^3"))


def _errors(delta: Tensor, weights: list[Tensor], zs: list[Tensor], transposed: bool = False) -> list[Tensor]:
    """From the last delta down: a weight and a z for each layer below."""
    deltas = [delta]
    for w, z in zip(weights, zs, strict=True):
        deltas.insert(0, (deltas[0] @ (w.T if transposed else w)) * sigmoid_slope(z))
    return deltas


ALL_ERRORS = Exercise(
    solution=all_errors,
    inputs=numbers((5, 3), (5, 3), (5, 3)),
    layer=_all_errors,
    reference=lambda *biases: _through(biases)[1],
    names=("delta^1", "delta^2", "delta^3"),
    mistakes={
        "w is one layer too low: delta^l comes down through w^{l+1}, the weight of the layer above.": lambda d, ws, zs: (
            _errors(d, ws[-2::-1], zs[-2::-1])
        ),
        "z is one layer too high: delta^l takes sigma' at z^l, the layer's own.": lambda d, ws, zs: _errors(
            d, ws[:0:-1], zs[:0:-1]
        ),
        "A transpose too many: the weights are square here, so the shapes fit, but it is delta @ w, not delta @ w.T.": (
            lambda d, ws, zs: _errors(d, ws[:0:-1], zs[-2::-1], transposed=True)
        ),
        "Your list begins with the last layer: turn it round, so that deltas[0] is the first layer's.": lambda d, ws, zs: (
            _errors(d, ws[:0:-1], zs[-2::-1])[::-1]
        ),
        "Every error is made from the last one: delta^l comes from delta^{l+1}, the one that you have just found.": (
            lambda d, ws, zs: [*((d @ w) * sigmoid_slope(z) for w, z in zip(ws[1:], zs[:-1], strict=True)), d]
        ),
        "sigma'(z) is missing: each step down multiplies by w and by one sigma'.": lambda d, ws, zs: [
            d @ ws[2] @ ws[1],
            d @ ws[2],
            d,
        ],
    },
)

EXERCISES = [BACKPROPAGATED_ERROR, ALL_ERRORS]
