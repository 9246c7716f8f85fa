"""When the gradient of a weight stays factored: its optimizer asked, it is worth it, and the backward pass is a plain one."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from manualgrad import equations
from manualgrad.factored.gradient import FactoredGradient


ModuleT = TypeVar("ModuleT", bound=nn.Module)

# How many living requests there are for a weight, by its id: a weak reference to a parameter would keep
# `torch.__future__.set_swap_module_params_on_conversion` from swapping it.
_requests: dict[int, int] = {}
_MARK = "_keeps_factors"  # on a weight: wanted for as long as it lives


class Request:
    """While this lives, `Dense` hands the weights factored gradients where that saves memory."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.weights = {id(w): w for w in weights}  # held, so that no other tensor is given the id
        for key in self.weights:
            _requests[key] = _requests.get(key, 0) + 1
        weakref.finalize(self, _withdraw, tuple(self.weights)).atexit = False


def _withdraw(keys: Iterable[int]) -> None:
    for key in keys:
        _requests[key] -= 1
        if not _requests[key]:
            del _requests[key]


def is_wanted(weight: Tensor) -> bool:
    """Whether somebody who lives has asked for this very tensor, or it is marked."""
    return id(weight) in _requests or hasattr(weight, _MARK)


def pass_on_requests(model: nn.Module, copied: nn.Module) -> None:
    """Mark each parameter of a deep copy for whose original somebody asks."""
    for w, copied_w in zip(model.parameters(), copied.parameters(), strict=True):
        if is_wanted(w):
            setattr(copied_w, _MARK, True)


def keep_factored(model: ModuleT) -> ModuleT:
    """Ask for factored gradients for an optimizer that does not ask itself, such as `torch.optim.SGD`. Returns the model.

    Concerns the weights of the `Dense` layers in it. `torch.optim.SGD` (loop, foreach and fused), `clip_grad_norm_` and
    `GradScaler` work on the factors; other optimizers make them dense, once per step and with a `FactorsLostWarning`.

    The weights are marked. The mark is pickled with them; a deep copy, and a conversion that makes new parameters
    (`torch.__future__.set_swap_module_params_on_conversion`), leaves it behind: ask again after those.

    Raises:
        TypeError: not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"keep_factored expected a torch.nn.Module, got {type(model).__name__}. Pass the model itself.")
    for module in model.modules():
        if isinstance(module, nn.Linear):
            setattr(module.weight, _MARK, True)
    return model


# Below this many entries Python's dispatch costs more than passing over the weight. Measured on square three-layer nets, two
# cores, float32, dense time over factored at batch 1 / 8 / 32: 0.80 / 0.96 / 0.94 for 128 x 128, 1.26 / 1.03 / 1.03 for
# 192 x 192, 2.0 / 1.4 / 1.03 for 512 x 512.
SMALLEST_FACTORED_WEIGHT = 2**15


def may_keep_factors(weight: Tensor, a_below: Tensor) -> tuple[torch.dtype, int] | None:
    """The factored gradient's dtype and rows per sample, if its optimizer asked for one and nothing is against it yet."""
    if weight.numel() < SMALLEST_FACTORED_WEIGHT or torch.compiler.is_compiling():
        return None
    if not (weight.is_leaf and weight.is_floating_point() and is_wanted(weight)):
        return None
    base = a_below._base
    if base is not None and base.is_leaf and base.requires_grad:
        return None  # a part of another parameter, which its optimizer may change before this weight's turn
    return weight.dtype, math.prod(a_below.shape[1:-1])


def weight_gradient_or_factors(delta: Tensor, a: Tensor, keeps_factors: tuple[torch.dtype, int] | None) -> Tensor:
    """dC/dw: its factors where the weight's optimizer asked for them and they are smaller than the product, else dense."""
    if keeps_factors:
        (r, m), n = delta.shape, a.size(1)
        if r * (m + n) < m * n and _is_plain_backward(delta, a):
            dtype, rows_per_sample = keeps_factors
            a = a.detach()  # the values (and the count of changes in place) without the graph that made them
            return FactoredGradient(delta, a, dtype, rows_per_sample=max(1, rows_per_sample))
    return equations.weight_gradient(delta, a)


def _is_plain_backward(delta: Tensor, a: Tensor) -> bool:
    """First order, eager, on plain tensors. Everything else differentiates through the gradient or transforms it."""
    return (
        not torch.is_grad_enabled()
        and type(delta) is type(a) is Tensor
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._functorch.is_legacy_batchedtensor(delta)  # torch.autograd.grad(..., is_grads_batched=True)
        and forward_ad._current_level < 0
    )
