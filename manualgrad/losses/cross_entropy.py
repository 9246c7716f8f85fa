"""Losses of logits: binary cross-entropy after a sigmoid, and cross-entropy after a softmax."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from manualgrad.autograd.torch_state import are_transforms_active
from manualgrad.losses.loss import Loss


class BinaryCrossEntropyLoss(Loss):
    """C = mean of -(y log sigmoid(z) + (1 - y) log(1 - sigmoid(z))) over all elements, from logits z.

        dC/dz = ((1 - y) sigmoid(z) - y sigmoid(-z)) / number of elements

    outputs z (...), targets y (...) in [0, 1] -> (). Equal to `nn.BCEWithLogitsLoss()`, also in taking targets outside [0, 1]
    without an error; C may then be negative. Finite for logits of any size: the logarithm is taken of e^-|z| + 1 and never of a
    rounded probability. The gradient is sigmoid(z) - y, written so that it keeps its digits where the net is sure and right:
    at z = 17.5 and y = 1 the difference rounds to 0 in float32, -sigmoid(-z) does not.
    """

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -(targets * F.logsigmoid(outputs) + (1 - targets) * F.logsigmoid(-outputs)).mean()

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((1 - targets) * torch.sigmoid(outputs) - targets * torch.sigmoid(-outputs)) / outputs.numel()

    def target_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -outputs / outputs.numel()


class SoftmaxCrossEntropyLoss(Loss):
    """C = mean over the batch of -sum_k y_k log softmax(z)_k, from logits z.

        dC/dz = (softmax(z) sum_k y_k - y) / r      and for class indices y is the one-hot row

    outputs z (r, k), (k,) or (r, k, ...): classes on axis 1, or 0 if that is the only one.
    targets: class indices, int64, of that shape without the class axis, the value -100 meaning "leave this one out of the
    mean"; or probabilities of the same shape as z. -> (). Equal to `nn.CrossEntropyLoss()`. Finite for logits of any size:
    the logarithm is never taken of a rounded probability.
    """

    ignored = -100  # nn.CrossEntropyLoss's ignore_index

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        axis = _class_axis(outputs)
        log_probabilities = torch.log_softmax(outputs, axis)
        if targets.is_floating_point():
            return -(targets * log_probabilities).sum() / (outputs.numel() // outputs.size(axis))
        counted = targets != self.ignored
        picked = log_probabilities.gather(axis, (targets * counted).unsqueeze(axis)).squeeze(axis)
        return -torch.where(counted, picked, 0).sum() / counted.sum()

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        axis = _class_axis(outputs)
        probabilities = torch.softmax(outputs, axis)
        if targets.is_floating_point():
            return (probabilities * targets.sum(axis, keepdim=True) - targets) / (outputs.numel() // outputs.size(axis))
        counted = (targets != self.ignored).unsqueeze(axis)
        index = targets.unsqueeze(axis) * counted
        minus_one = torch.full_like(index, -1, dtype=outputs.dtype)
        counts = counted.sum().clamp(min=1)  # where all are left out, C is NaN and its gradient 0, as PyTorch's are
        return torch.where(counted, probabilities.scatter_add(axis, index, minus_one), 0) / counts

    def target_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        axis = _class_axis(outputs)
        return -torch.log_softmax(outputs, axis) / (outputs.numel() // outputs.size(axis))

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raises ValueError: neither indices nor probabilities by shape, or an index that is no class (seen on the CPU;
        a GPU asserts by itself, and looking would stall it). TypeError: indices that are not int64."""
        self._check_types(outputs, targets)
        axis = _class_axis(outputs)
        if outputs.dim() == 0 or outputs.size(axis) == 0:
            raise ValueError(
                "SoftmaxCrossEntropyLoss expected outputs of shape (rows, classes, ...) or (classes,) with at least one class, "
                f"got {tuple(outputs.shape)}. Give the last layer one feature for each class."
            )
        indices_shape = (*outputs.shape[:axis], *outputs.shape[axis + 1 :])
        if targets.is_floating_point():
            if tuple(targets.shape) == indices_shape:
                raise ValueError(
                    f"SoftmaxCrossEntropyLoss expected targets of the outputs' shape {tuple(outputs.shape)}, got {indices_shape}. "
                    "Reshape one of them, nothing is broadcast; or, if these are class indices, convert them with targets.long()."
                )
            return super().check(outputs, targets)
        advice = "Reshape them, or pass probabilities as floating point of the outputs' shape."
        check_class_indices(
            targets, outputs, indices_shape, outputs.size(axis), "SoftmaxCrossEntropyLoss", advice, self.ignored
        )


def _class_axis(outputs: Tensor) -> int:
    return 0 if outputs.dim() == 1 else 1


def check_class_indices(
    targets: Tensor,
    outputs: Tensor,
    shape: Sequence[int],
    classes: int,
    caller: str,
    advice: str,
    ignored: int | None = None,
) -> None:
    """Raises ValueError for another shape or an index that is no class (seen on the CPU; a GPU asserts by itself, and looking
    would stall it). TypeError: they are not int64."""
    if tuple(targets.shape) != tuple(shape):
        raise ValueError(
            f"{caller} expected class indices of shape {tuple(shape)} for outputs of shape {tuple(outputs.shape)}, "
            f"got {tuple(targets.shape)}. {advice}"
        )
    if targets.dtype != torch.int64:
        raise TypeError(
            f"{caller} expected class indices of dtype torch.int64, got {targets.dtype}. "
            "Convert them with targets.long()."
        )
    looks = targets.device.type == "cpu" and not torch.compiler.is_compiling()
    if looks and targets.numel() and not are_transforms_active():  # vmap has no values to look at
        is_wrong = (targets < 0) | (targets >= classes)
        wrong = targets[is_wrong if ignored is None else is_wrong & (targets != ignored)]
        if wrong.numel():
            raise ValueError(
                f"{caller} expected class indices from 0 to {classes - 1} for outputs of shape "
                f"{tuple(outputs.shape)}, got {int(wrong[0])}. Correct the targets or give the last layer more features."
            )
