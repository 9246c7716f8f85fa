"""The loss by hand that computes what one of `torch.nn` does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from manualgrad.losses.cross_entropy import BinaryCrossEntropyLoss, SoftmaxCrossEntropyLoss
from manualgrad.losses.loss import Loss
from manualgrad.losses.quadratic import MeanSquaredError, QuadraticLoss
from manualgrad.train_step.recording.recorder import live


class LiveLoss(Loss):
    """A loss that a user has written, called anew in every replay of a recording."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self._loss = loss

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return live(lambda a, y: self._loss.value(a, y), outputs, targets)  # looked up anew: it may be replaced

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return live(lambda a, y: self._loss.gradient(a, y), outputs, targets)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        self._loss.check(outputs, targets)


def value_and_gradient(loss: Loss, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """C and dC/da. A sum of squares is computed from its own gradient, as one product of a row and a column."""
    gradient = loss.gradient(outputs, targets)
    if outputs.numel() == 0:  # a mean over nothing is NaN, a product over nothing 0
        return loss.value(outputs, targets), gradient
    if type(loss) is QuadraticLoss:
        factor = outputs[..., 0].numel() / 2  # r / 2 times the sum of ((a - y) / r)^2
    elif type(loss) is MeanSquaredError:
        factor = outputs.numel() / 4  # m r / 4 times the sum of (2 (a - y) / (m r))^2
    else:
        return loss.value(outputs, targets), gradient
    row, zero = gradient.reshape(1, -1), outputs.new_zeros((1, 1))
    return torch.addmm(zero, row, row.t(), beta=0, alpha=factor).view(()), gradient


_OURS = {QuadraticLoss, BinaryCrossEntropyLoss, SoftmaxCrossEntropyLoss}
_FORMULAS = ("value", "gradient")  # that a user may replace in one of ours
_SETTINGS = ("reduction", "ignore_index", "label_smoothing")
_EXPECTED = (
    "mg.QuadraticLoss, mg.SoftmaxCrossEntropyLoss, mg.BinaryCrossEntropyLoss, or the unweighted mean nn.MSELoss(), "
    "nn.CrossEntropyLoss() or nn.BCEWithLogitsLoss()"
)


def loss_by_hand(loss: nn.Module) -> Loss:
    """A `Loss` of ours as it is; `nn.MSELoss`, `nn.CrossEntropyLoss` and `nn.BCEWithLogitsLoss` as their equal.

    Raises:
        TypeError: another loss, one of those with weights, another reduction or label smoothing, or one of ours whose `forward`
            or `__call__` is another.
    """
    if isinstance(loss, Loss):
        kind = type(loss)
        if kind.forward is not Loss.forward or kind.__call__ is not nn.Module.__call__:
            raise TypeError(
                f"TrainStep expected a loss that defines `value` and `gradient`, got {kind.__name__} with a `forward` of its own, "
                "which it would not call. Move what it does to these two, or train with autograd."
            )
        is_ours = kind in _OURS and not any(name in loss.__dict__ for name in _FORMULAS)
        return loss if is_ours else LiveLoss(loss)
    is_plain = getattr(loss, "reduction", None) == "mean" and getattr(loss, "weight", None) is None
    if type(loss) is nn.MSELoss and is_plain:
        return MeanSquaredError()
    if type(loss) is nn.BCEWithLogitsLoss and is_plain and loss.pos_weight is None:
        return BinaryCrossEntropyLoss()
    if type(loss) is nn.CrossEntropyLoss and is_plain and loss.label_smoothing == 0:
        if loss.ignore_index == SoftmaxCrossEntropyLoss.ignored:
            return SoftmaxCrossEntropyLoss()
    raise TypeError(f"TrainStep expected {_EXPECTED}, got {loss!r}. Use one of these, or train with autograd.")


def read_from_loss(loss: nn.Module, by_hand: Loss) -> Iterator[tuple[dict[str, Any], str]]:
    """Where each thing lies that `loss_by_hand` relied on."""
    if not isinstance(loss, Loss):
        yield from ((loss.__dict__, name) for name in _SETTINGS)
        yield from ((loss._buffers, name) for name in ("weight", "pos_weight"))
        yield from ((loss.__dict__, name) for name in ("weight", "pos_weight"))
    elif by_hand is loss:
        yield from ((loss.__dict__, name) for name in _FORMULAS)
