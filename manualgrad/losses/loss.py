"""Losses (costs C) and their output gradients dC/da, by hand.

Each loss has three parts: `value` is C, `gradient` is dC/da, `target_gradient` is dC/dy; the module's call joins them for
autograd. Everything is a mean over the batch. Shapes: outputs a (or logits z) and targets y of the shape each class states.
Under `torch.autocast` losses are computed in float32, as PyTorch's are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manualgrad.autograd.apply import call, is_left_to_autograd
from manualgrad.autograd.autocast import is_autocasting
from manualgrad.autograd.switch import is_by_autograd
from manualgrad.losses.class_index_checks import check_indices, check_probabilities


class LossFunction(torch.autograd.Function):
    """C(outputs, targets), differentiated by the loss's own `gradient`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(outputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
        return loss.value(outputs, targets)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        outputs, targets, loss = inputs
        ctx.loss = loss
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(outputs, targets)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple:
        if upstream is None:
            return None, None, None
        outputs, targets = ctx.saved_tensors
        needs_outputs, needs_targets, _ = ctx.needs_input_grad
        return (
            upstream * ctx.loss.gradient(outputs, targets) if needs_outputs else None,
            upstream * ctx.loss.target_gradient(outputs, targets) if needs_targets else None,
            None,
        )


class LossFunctionWithTangent(LossFunction):
    """The same, also differentiated forwards: C' = sum dC/da a' + sum dC/dy y'. `torch.compile` refuses a `jvp`."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        LossFunction.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def jvp(ctx: Any, outputs_tangent: Tensor | None, targets_tangent: Tensor | None, _: None) -> Tensor | None:
        outputs, targets = ctx.saved_tensors
        along_outputs = along_targets = None
        if outputs_tangent is not None:
            along_outputs = (ctx.loss.gradient(outputs, targets) * outputs_tangent).sum()
        if targets_tangent is not None:
            along_targets = (ctx.loss.target_gradient(outputs, targets) * targets_tangent).sum()
        if along_outputs is None or along_targets is None:
            return along_targets if along_outputs is None else along_outputs
        return along_outputs + along_targets


class Loss(nn.Module):
    """A cost with a gradient written by hand. Subclasses give the three formulas and what they accept."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """C, a 0-dimensional tensor. Raises as `check` does, before anything is computed."""
        self.check(outputs, targets)
        if outputs.dtype in (torch.float16, torch.bfloat16) and is_autocasting(outputs):
            outputs = outputs.float()
        if not targets.is_floating_point() and targets.shape == outputs.shape:
            targets = targets.to(outputs.dtype)  # 0 and 1 given as integers or booleans
        if is_by_autograd() or is_left_to_autograd():
            return self.value(outputs, targets)
        return call(LossFunction, LossFunctionWithTangent, outputs, targets, self)

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """C: 0-dimensional."""
        raise NotImplementedError

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """dC/d outputs: the shape of `outputs`."""
        raise NotImplementedError

    def target_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """dC/d targets: the shape of `targets`."""
        raise NotImplementedError

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raises ValueError unless both have one shape: broadcasting would silently compare everything with everything.
        TypeError: not tensors, or outputs that are not floating point."""
        self._check_types(outputs, targets)
        if outputs.shape != targets.shape:
            raise ValueError(
                f"{type(self).__name__} expected targets of the outputs' shape {tuple(outputs.shape)}, got {tuple(targets.shape)}. "
                f"{self._hint(outputs, targets)}"
            )

    def _check_types(self, outputs: Tensor, targets: Tensor) -> None:
        for role, x in (("outputs", outputs), ("targets", targets)):
            if not isinstance(x, Tensor):
                raise TypeError(
                    f"{type(self).__name__} expected `{role}` to be a torch.Tensor, got {type(x).__name__}. "
                    f"Convert it with torch.as_tensor({role})."
                )
        if targets.is_complex():
            raise TypeError(
                f"{type(self).__name__} expected real targets, got {targets.dtype}. Take their real part or their absolute value."
            )
        if not outputs.is_floating_point():
            raise TypeError(
                f"{type(self).__name__} expected floating point outputs, got {outputs.dtype}. "
                "Convert integers with .float(); take the real part or the absolute value of complex ones."
            )

    def _hint(self, outputs: Tensor, targets: Tensor) -> str:
        if outputs.dim() > 1 and targets.shape == outputs.shape[:-1] and not targets.is_floating_point():
            return f"Turn class indices into rows: torch.nn.functional.one_hot(targets, {outputs.size(-1)}).to(outputs.dtype)."
        return "Reshape one of them; nothing is broadcast."


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


class BinaryCrossEntropyLoss(Loss):
    """C = mean of -(y log sigmoid(z) + (1 - y) log(1 - sigmoid(z))) over all elements, from logits z.

        dC/dz = (sigmoid(z) - y) / number of elements

    outputs z (...), targets y (...) in [0, 1] -> (). Equal to `nn.BCEWithLogitsLoss()`, also in taking targets outside [0, 1]
    without an error; C may then be negative. Finite for logits of any size: the logarithm is taken of e^-|z| + 1 and never of a
    rounded probability.
    """

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((1 - targets) * outputs - F.logsigmoid(outputs)).mean()

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (torch.sigmoid(outputs) - targets) / outputs.numel()

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
            check_probabilities(outputs, targets, indices_shape)
            return super().check(outputs, targets)
        check_indices(outputs, targets, indices_shape, outputs.size(axis), self.ignored)


def _rows(outputs: Tensor) -> int:
    """How many rows (examples) `outputs` (..., m) has."""
    return math.prod(outputs.shape[:-1])


def _class_axis(outputs: Tensor) -> int:
    return 0 if outputs.dim() == 1 else 1
