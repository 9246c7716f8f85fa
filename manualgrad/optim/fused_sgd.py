"""The fused step of `torch.optim.SGD(fused=True)` on a list of gradients of which some are factored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from manualgrad.factored.aliasing import copy_before_writing
from manualgrad.factored.list_operations import as_dense, has_factors
from manualgrad.factored.operations import divide_in_place, implements
from manualgrad.optim.sgd_rule import update


aten = torch.ops.aten


@implements(aten._fused_sgd_.default, aten._fused_sgd_.tensor_lr)
def fused_sgd(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    velocities: Sequence[Tensor],
    *,
    is_first_step: bool,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    **options: Any,
) -> None:  # torch.optim.SGD(fused=True)
    copy_before_writing([*weights, *velocities])
    velocities = velocities or [None] * len(weights)  # type: ignore[list-item]
    rest = [i for i, gradient in enumerate(gradients) if not has_factors(gradient)]
    skipped = found_inf is not None and bool(found_inf.item())
    for w, gradient, velocity in zip(weights, gradients, velocities, strict=True):
        if skipped or not has_factors(gradient):
            continue
        if grad_scale is not None:
            divide_in_place(gradient, grad_scale.reshape(()))
        made = update(w, gradient, None if is_first_step else velocity, options)
        if is_first_step and made is not None:
            velocity.copy_(made)
    if rest:
        torch._fused_sgd_(
            [weights[i] for i in rest],
            [as_dense(gradients[i], weights[i]) for i in rest],
            [velocities[i] for i in rest if velocities[i] is not None],
            is_first_step=is_first_step,
            grad_scale=grad_scale,
            found_inf=found_inf,
            **options,
        )
