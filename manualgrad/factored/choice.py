"""Factored or dense: decided for each weight in each backward pass.

The gradient stays factored where its optimizer asked for that (`requests`), where the factors are smaller than their product,
and where the backward pass is a plain one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manualgrad import equations
from manualgrad.autograd.torch_state import is_batched_gradient, is_forward_mode_active
from manualgrad.factored.gradient import FactoredGradient
from manualgrad.factored.requests import is_wanted


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
        and not is_forward_mode_active()
        and not is_batched_gradient(delta)
    )
