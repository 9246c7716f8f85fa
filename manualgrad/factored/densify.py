"""What happens to a factored gradient in an operation that has no rule for factors: it becomes dense, with a warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map_only


aten = torch.ops.aten


class FactorsLostWarning(UserWarning):
    """An operation needed every entry of a factored gradient, which is now dense and as large as its weight."""


# Written into the gradient itself and not linear, so the value becomes dense; whoever calls it has asked for that:
# clip_grad_value_, and Adamax with foreach and maximize, on a negated copy.
_expected = {
    aten.abs_.default,
    aten.clamp_.default,
    aten.clamp_.Tensor,
    aten.clamp_min_.default,
    aten.clamp_max_.default,
}


_warned: set[str] = set()
# A token for each open `forbid_densify`, of all threads: the backward pass on a GPU runs in threads of its own.
_forbidding: set[object] = set()


@contextmanager
def forbid_densify() -> Iterator[None]:
    """Inside, an operation that would lose the factors of a gradient raises RuntimeError, and the gradient keeps them.

    For tests that a training step stays factored. It concerns operations that have no rule for factors; what is dense by
    design stays allowed: `clone`, `to_dense`, clipping by value, folding past the limit of accumulated rows, DDP's `copy_`, a
    2-norm of so many rows that the product is the cheaper way to it, a norm that is infinite although the factors are not, and
    what makes a tensor of all entries, as `abs` does.
    """
    _forbidding.add(token := object())
    try:
        yield
    finally:
        _forbidding.remove(token)


def densify(cls: Any, operation: Any, arguments: tuple, keywords: dict[str, Any]) -> Any:
    """Make every instance of `cls` (FactoredGradient) among the arguments dense, for good, and run the operation on that."""
    name = getattr(operation, "__name__", str(operation)).removesuffix(".default")
    gradients = [x for x in tree_leaves((arguments, keywords)) if isinstance(x, cls)]
    if torch.Tag.inplace_view in getattr(operation, "tags", ()):
        raise RuntimeError(
            f"A factored gradient expected to keep its shape, got the in-place operation {name}. "
            "Use the operation that is not in place, or gradient.to_dense()."
        )
    if operation not in _expected and not all(gradient.is_dense for gradient in gradients):
        _warn(name, tuple(gradients[0].shape))
    wrapper = {id(gradient.densify()): gradient for gradient in gradients}
    arguments, keywords = tree_map_only(cls, cls.densify, (arguments, keywords))
    result = operation(*arguments, **keywords)
    # An in-place operation returns its argument: hand back the gradient itself, not the tensor inside.
    return tree_map_only(Tensor, lambda tensor: wrapper.get(id(tensor), tensor), result)


def _warn(name: str, shape: tuple[int, ...]) -> None:
    optimizer, level = _caller()
    sentence = (
        f"{name} needs every entry of a factored gradient of shape {shape}, which {{}} dense and as large as its weight. "
        "If that is too much, read .delta and .a or .norm() instead, or work on gradient.to_dense()."
    )
    if optimizer:
        sentence = (
            f"{optimizer} needs every entry of a factored gradient of shape {shape} (for {name}), which {{}} dense and as large "
            "as its weight. If that is too much memory, train with an optimizer that reads gradients entry by entry, as those of "
            "torch.optim do but LBFGS; if it is not, mg.keep_factored(model, False) asks for dense gradients."
        )
    if _forbidding:
        raise RuntimeError(sentence.format("would become") + " (inside forbid_densify())")
    if (optimizer or name) not in _warned:
        warnings.warn(sentence.format("becomes"), FactorsLostWarning, stacklevel=level)
        _warned.add(optimizer or name)  # after the warning: where warnings are errors, every time is an error


def _caller() -> tuple[str | None, int]:
    """The name of the optimizer that is taking a step, or None; and the `stacklevel` of the line that called it, or us."""
    optimizer, level, outermost = None, 0, 4
    frame = sys._getframe(1)
    while frame is not None:
        level += 1
        if isinstance(called := frame.f_locals.get("self"), Optimizer):
            optimizer, outermost = optimizer or type(called).__name__, level + 1
        frame = frame.f_back  # type: ignore[assignment]
    return optimizer, outermost
