"""Factored or dense: decided for each weight in each backward pass.

The gradient stays factored where its optimizer asked for that (`requests`), where the factors are smaller than their product,
and where the backward pass is a plain one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from manualgrad import equations
from manualgrad.autograd.torch_state import is_batched_gradient, is_forward_mode_active
from manualgrad.factored.cost import pays_to_keep
from manualgrad.factored.factors import without_the_rest
from manualgrad.factored.gradient import FactoredGradient
from manualgrad.factored.requests import is_wanted


# Below this many entries Python's dispatch costs more than passing over the weight. Measured on square three-layer nets, two
# cores, float32, dense time over factored at batch 1 / 8 / 32: 0.80 / 0.96 / 0.94 for 128 x 128, 1.26 / 1.03 / 1.03 for
# 192 x 192, 2.0 / 1.4 / 1.03 for 512 x 512.
SMALLEST_FACTORED_WEIGHT = 2**15


class Plan(NamedTuple):
    """What the forward pass knows of a gradient that may stay factored."""

    dtype: torch.dtype
    rows_per_sample: int
    is_input_copied: bool  # it is memory of another parameter, which may be changed before this weight's turn


def may_keep_factors(weight: Tensor, a_below: Tensor) -> Plan | None:
    """What a factored gradient would be like, if its optimizer asked for one and nothing is against it yet."""
    if weight.numel() < SMALLEST_FACTORED_WEIGHT or torch.compiler.is_compiling():
        return None
    if not (weight.is_leaf and weight.is_floating_point() and is_wanted(weight)):
        return None
    base = a_below if a_below._base is None else a_below._base
    return Plan(weight.dtype, max(1, math.prod(a_below.shape[1:-1])), base.is_leaf and base.requires_grad)


def weight_gradient_or_factors(delta: Tensor, a: Tensor, plan: Plan | None) -> Tensor:
    """dC/dw: its factors where the weight's optimizer asked for them and they are smaller than the product, else dense."""
    if plan:
        (r, m), n = delta.shape, a.size(1)
        if pays_to_keep(r, m, n) and _is_plain_backward(delta, a):
            a = a.detach()  # the values (and the count of changes in place) without the graph that made them
            delta, a = without_the_rest(delta), a.clone() if plan.is_input_copied else without_the_rest(a)
            return FactoredGradient(delta, a, plan.dtype, rows_per_sample=plan.rows_per_sample)
    return equations.weight_gradient(delta, a)


def _is_plain_backward(delta: Tensor, a: Tensor) -> bool:
    """First order, eager, on plain tensors. Everything else differentiates through the gradient or transforms it."""
    return (
        not torch.is_grad_enabled()
        and type(delta) is type(a) is Tensor
        and not is_forward_mode_active()
        and not is_batched_gradient(delta)
    )
