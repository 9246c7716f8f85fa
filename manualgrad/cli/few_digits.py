"""A few handwritten digits, small enough to follow every number: pixels averaged together, the first classes only."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from manualgrad.extras import require


SIDE = 8  # pixels, of scikit-learn's images
CLASSES = 10


def few_digits(pixels: int, classes: int, count: int) -> tuple[Tensor, Tensor]:
    """Images (count, pixels) from 0 to 1, float32, and their digits (count,), int64: 0, 1, ..., and from the start again.

    They are the first of `sklearn.datasets.load_digits`, 8 x 8 pixels averaged to as many as asked for.

    Raises:
        ValueError: `pixels` is not the square of 1 to 8, `classes` not from 2 to 10, or there are not `count` such images.
        MissingExtraError: scikit-learn is not installed.
    """
    side = math.isqrt(max(pixels, 0))
    if side * side != pixels or not 1 <= side <= SIDE:
        raise ValueError(
            f"Expected the net to take a square of pixels, 1, 4, 9, ... or 64, got {pixels} features in. "
            "Make the first layer size one of these, for example 9."
        )
    if not 2 <= classes <= CLASSES:
        raise ValueError(
            f"Expected the net to tell 2 to 10 digits apart, got {classes} features out. "
            "Make the last layer size 1 (for 0 and 1) to 10."
        )
    require("sklearn", extra="demo", purpose="The digits")
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    labels = torch.tensor(digits, dtype=torch.int64)
    of_each = [(labels == digit).nonzero().squeeze(1).tolist() for digit in range(classes)]
    in_turn = [index for same_rank in zip(*of_each, strict=False) for index in same_rank]
    if not 1 <= count <= len(in_turn):
        raise ValueError(
            f"Expected from 1 to {len(in_turn)} examples of {classes} digits, got {count}. Ask for as many as there are."
        )
    chosen = torch.tensor(in_turn[:count])
    pictures = torch.tensor(images, dtype=torch.float32)[chosen].view(-1, 1, SIDE, SIDE) / 16
    return F.adaptive_avg_pool2d(pictures, side).flatten(1), labels[chosen]
