"""Losses of squared differences."""

import math

from torch import Tensor

from manualgrad.losses.loss import Loss


class QuadraticLoss(Loss):
    """C = 1/2 sum_k (a_k - y_k)^2, summed over the last axis (features), mean over all others (the batch).

        dC/da = (a - y) / r

    outputs a (..., m), targets y (..., m), r rows -> (). The factor 1/2 is what makes delta^L = (a - y) * sigma'(z) true;
    the text leaves it out of C. It is m/2 times `nn.MSELoss`, which takes the mean over features too.
    Source: Nielsen, *Neural Networks and Deep Learning*, equations (26) and (30).
    """

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        difference = outputs - targets
        return (difference * difference).sum() / (2 * _rows(outputs))

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets) / _rows(outputs)

    def target_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (targets - outputs) / _rows(outputs)


class MeanSquaredError(Loss):
    """C = mean of (a_k - y_k)^2 over batch and features: 2/m times the quadratic loss. Equal to `nn.MSELoss()`.

        dC/da = 2 (a - y) / (r m)

    outputs a (..., m), targets y (..., m), r rows -> ().
    """

    _quadratic = QuadraticLoss()

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._quadratic.value(outputs, targets) * (2 / outputs.size(-1))

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._quadratic.gradient(outputs, targets) * (2 / outputs.size(-1))

    def target_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._quadratic.target_gradient(outputs, targets) * (2 / outputs.size(-1))


def _rows(outputs: Tensor) -> int:
    """How many rows (examples) `outputs` (..., m) has."""
    return math.prod(outputs.shape[:-1])
