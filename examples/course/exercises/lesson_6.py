"""Exercises of notebook 6: the digits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .exercise import OF_LAYER, A, B, Exercise, W, Z, by_hand, given, sigmoid_slope, with_slope


def softmax_error(z: Tensor, classes: Tensor) -> Tensor:
    p = torch.softmax(z, dim=1)  # each row sums to 1
    y = F.one_hot(classes, z.size(1))
    return (p - y) / len(z)


def silu_slope(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s + z * s * (1 - s)  # the product rule on z * sigmoid(z)


_CLASSES = torch.tensor([2, 0, 1, 1, 2])


def _softmax_error(z: Tensor, classes: Tensor, mean: bool = True, axis: int = 1) -> Tensor:
    return (torch.softmax(z, axis) - F.one_hot(classes, z.size(1))) / (len(z) if mean else 1)


SOFTMAX_ERROR = Exercise(
    solution=softmax_error,
    inputs=(Z,),
    layer=lambda function: by_hand(
        lambda z: F.cross_entropy(z, _CLASSES), lambda g, z: (g * given(function, z, _CLASSES),), ("dC/dz",)
    ),
    reference=lambda z: F.cross_entropy(z, _CLASSES),
    names=("dC/dz",),
    mistakes={
        "The mean over the batch is missing: divide p - y by the number of examples.": lambda z, classes: (
            _softmax_error(z, classes, mean=False)
        ),
        "The softmax runs down the batch: each row is one example, and its probabilities sum to 1: dim=1.": (
            lambda z, classes: _softmax_error(z, classes, axis=0)
        ),
        "The classes are subtracted as numbers: class 2 is not twice class 1, so make each a one-hot row y first.": (
            lambda z, classes: (torch.softmax(z, 1) - classes[:, None]) / len(z)
        ),
        "sigma' is there once too often: with softmax and cross-entropy p (1 - p) has cancelled, and dC/dz is (p - y) / r.": (
            lambda z, classes: _softmax_error(z, classes) * torch.softmax(z, 1) * (1 - torch.softmax(z, 1))
        ),
        "The sign is wrong: dC/dz is p - y, not y - p.": lambda z, classes: -_softmax_error(z, classes),
    },
)
SILU_SLOPE = Exercise(
    solution=silu_slope,
    inputs=(A, W, B),
    layer=with_slope(F.silu),
    reference=lambda a, w, b: F.silu(F.linear(a, w, b)),
    names=OF_LAYER,
    mistakes={
        "Half of the product rule is missing: you hold s = sigmoid(z) and forget that it changes with z, z s (1 - s).": (
            lambda z: torch.sigmoid(z)
        ),
        "Half of the product rule is missing: you forget the first factor's slope, which gives s = sigmoid(z).": lambda z: (
            z * sigmoid_slope(z)
        ),
        "That is the slope of the sigmoid alone: sigma here is z sigmoid(z), a product.": sigmoid_slope,
        "The slope of s is s (1 - s), and you wrote s: look at the second term.": lambda z: torch.sigmoid(z) * (1 + z),
    },
)

EXERCISES = [SOFTMAX_ERROR, SILU_SLOPE]
