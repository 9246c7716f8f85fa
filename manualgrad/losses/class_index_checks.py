"""What class indices must be: the errors that `SoftmaxCrossEntropyLoss` raises before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor


def check_probabilities(outputs: Tensor, targets: Tensor, indices_shape: tuple[int, ...]) -> None:
    """Raises ValueError where floating point targets have the shape of class indices."""
    if tuple(targets.shape) == indices_shape:
        raise ValueError(
            f"SoftmaxCrossEntropyLoss expected targets of the outputs' shape {tuple(outputs.shape)}, got {indices_shape}. "
            "Reshape one of them, nothing is broadcast; or, if these are class indices, convert them with targets.long()."
        )


def check_indices(outputs: Tensor, targets: Tensor, shape: tuple[int, ...], classes: int, ignored: int) -> None:
    """Raises ValueError for another shape or an index that is no class (seen on the CPU; a GPU asserts by itself, and looking
    would stall it). TypeError: they are not int64."""
    if tuple(targets.shape) != shape:
        raise ValueError(
            f"SoftmaxCrossEntropyLoss expected class indices of shape {shape} for outputs of shape {tuple(outputs.shape)}, "
            f"got {tuple(targets.shape)}. Reshape them, or pass probabilities as floating point of the outputs' shape."
        )
    if targets.dtype != torch.int64:
        raise TypeError(
            f"SoftmaxCrossEntropyLoss expected class indices of dtype torch.int64, got {targets.dtype}. "
            "Convert them with targets.long()."
        )
    looks = targets.device.type == "cpu" and not torch.compiler.is_compiling()
    if looks and targets.numel() and not torch._C._are_functorch_transforms_active():  # vmap has no values to look at
        wrong = targets[((targets < 0) | (targets >= classes)) & (targets != ignored)]
        if wrong.numel():
            raise ValueError(
                f"SoftmaxCrossEntropyLoss expected class indices from 0 to {classes - 1} for outputs of shape "
                f"{tuple(outputs.shape)}, got {int(wrong[0])}. Correct the targets or give the last layer more features."
            )
