"""What a loss (cost C) is: its value, and its derivative dC/da by hand.

Each has three parts: `value` is C, `gradient` is dC/da, `target_gradient` is dC/dy; the module's call joins them for
autograd. Everything is a mean over the batch. Shapes: outputs a (or logits z) and targets y of the shape each class states.
Under `torch.autocast` losses are computed in float32, as PyTorch's are.
"""

import functools
import operator
from typing import Any

import torch
from torch import Tensor, nn

from manualgrad.autograd.apply import call, is_left_to_autograd
from manualgrad.autograd.autocast import is_autocasting
from manualgrad.autograd.switch import is_by_autograd


class LossFunction(torch.autograd.Function):
    """C(outputs, targets), differentiated by the loss's own `gradient`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(outputs: Tensor, targets: Tensor, loss: "Loss") -> Tensor:
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
        tangents = ((ctx.loss.gradient, outputs_tangent), (ctx.loss.target_gradient, targets_tangent))
        along = [(slope(outputs, targets) * tangent).sum() for slope, tangent in tangents if tangent is not None]
        return functools.reduce(operator.add, along) if along else None


class Loss(nn.Module):
    """A cost with a gradient written by hand. Subclasses give the three formulas and what they accept."""

    @torch.jit.unused  # a scripted model computes outputs, and holds its loss uncompiled
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
