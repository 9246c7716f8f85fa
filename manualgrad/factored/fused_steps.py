"""The fused steps of Adam, AdamW and Adagrad on lists of gradients of which some are factored.

The kernel runs on a few rows of a weight, its moments and its gradient at a time, each tile of the gradient made while it is
used. That of SGD, which is linear in the gradient, stands in `manualgrad.optim.fused_sgd`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from manualgrad.factored.aliasing import copy_before_writing
from manualgrad.factored.list_operations import as_dense, has_factors
from manualgrad.factored.operations import divide_in_place, implements


def fused_step(
    kernel: Any, weights: Sequence[Tensor], gradients: Sequence[Tensor], *states: Sequence[Tensor], **options: Any
) -> None:
    """states: the moments, lists as long as `weights` or empty, and last the numbers of steps (0-dimensional)."""
    *moments, steps = states
    copy_before_writing([*weights, *(x for moment in moments for x in moment)])
    rest = [i for i, gradient in enumerate(gradients) if not has_factors(gradient)]
    if rest:
        plain = [as_dense(gradients[i], weights[i]) for i in rest]
        kernel([weights[i] for i in rest], plain, *([x[i] for i in rest] if x else [] for x in states), **options)
    for i, gradient in enumerate(gradients):
        if has_factors(gradient):
            for rows, tile in gradient.tiles():
                _step_of_rows(kernel, rows, weights[i], tile, [x[i] if x else None for x in moments], steps[i], options)
            scale = options.get("grad_scale")
            if scale is not None:  # the kernel has unscaled the tiles: so it does to plain ones
                found_inf = options.get("found_inf")
                scale = scale if found_inf is None else torch.where(found_inf.bool(), torch.ones_like(scale), scale)
                divide_in_place(gradient, scale.reshape(()))


def _step_of_rows(
    kernel: Any,
    rows: slice,
    w: Tensor,
    tile: Tensor,
    moments: Sequence[Tensor | None],
    steps: Tensor,
    options: dict[str, Any],
) -> None:
    parts = [None if x is None else x[rows] for x in (w, *moments)]
    # The kernels go through memory side by side and ask for no strides.
    of_w, *of_moments = [[] if x is None else [x.contiguous()] for x in parts]
    kernel(of_w, [tile.contiguous()], *of_moments, [steps], **options)
    for part, written in zip(parts, (of_w, *of_moments), strict=True):
        if part is not None and written[0] is not part:
            part.copy_(written[0])


for _name in ("_fused_adam_", "_fused_adamw_", "_fused_adagrad_"):
    _packet = getattr(torch.ops.aten, _name)
    for _kernel in (getattr(_packet, name) for name in _packet.overloads() if name in ("default", "tensor_lr")):
        implements(_kernel)(partial(fused_step, _kernel))
