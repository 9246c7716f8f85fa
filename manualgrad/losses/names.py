"""The losses by the names under which the command line and `BackpropModule` know them."""

from typing import Literal

from manualgrad.losses.cross_entropy import BinaryCrossEntropyLoss, SoftmaxCrossEntropyLoss
from manualgrad.losses.loss import Loss
from manualgrad.losses.quadratic import QuadraticLoss


LossName = Literal["quadratic", "cross_entropy", "binary_cross_entropy"]
LOSSES: dict[str, type[Loss]] = {
    "quadratic": QuadraticLoss,
    "cross_entropy": SoftmaxCrossEntropyLoss,
    "binary_cross_entropy": BinaryCrossEntropyLoss,
}
