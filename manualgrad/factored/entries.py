"""The entries of a factored gradient, scale * delta^T a: added to a tensor in one product, or a few rows at a time.

Everything that stands for the value reads it here, so that each entry is what a dense gradient would hold: the product, taken
in a dtype wide enough for the factors and their scale, then rounded to the gradient's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from manualgrad import equations
from manualgrad.factored.aliasing import copy_before_writing_to
from manualgrad.factored.factors import Content, is_number, on_host, wider
from manualgrad.matrix_products import accumulates_wider


_TILE = 2**20  # entries at once: they are used while they are in the cache


def add_entries(
    target: Tensor, content: Content, dtype: torch.dtype, alpha: float | Tensor, beta: float | Tensor
) -> Tensor:
    """target := beta * target + alpha * gradient, in place, for a gradient of that content and dtype.

    Where that is the target's dtype and wide enough for the product, it is a single product that reads and writes the target
    once. Else each entry has to be rounded before it is added: a few rows at a time.
    """
    alpha = on_host(alpha)
    if isinstance(beta, Tensor):
        target, beta = target.mul_(beta), 1.0
    if not content.factors:
        return _accumulate(target, content.dense, alpha, beta)
    copy_before_writing_to(target, content)
    product, own = content.dtype_of_product(dtype), {f.delta.dtype for f in content.factors}
    if product != dtype or dtype != target.dtype:
        for rows, tile in tiles(content, dtype, "adding it to a tensor"):
            _accumulate(target[rows], tile, alpha, beta)
        return target
    common = content.common_scale()
    if len(own) == 1 and common is not None and not (isinstance(common, Tensor) or isinstance(alpha, Tensor)):
        (narrow,) = own
        product = narrow if accumulates_wider(target, narrow) else product
    delta, a, scale = content.joined(product, "adding it to a tensor")
    number = 1.0
    for factor in (alpha, scale):
        if isinstance(factor, Tensor):
            delta = delta * factor
        else:
            number *= factor
    if number == 0 or number != number:  # as alpha, 0 would hide inf in the factors, and MKL takes float32's NaN for 1
        delta, number = delta * number, 1.0
    return equations.add_weight_gradient(target, delta, a, alpha=number, beta=beta)


def tiles(content: Content, dtype: torch.dtype, use: str) -> Iterator[tuple[slice, Tensor]]:
    """The entries, a few rows at a time and a quarter of them at most, each with the rows that it is. All in one memory."""
    product, scale = content.dtype_of_product(dtype), content.common_scale()
    if scale is not None and not is_number(scale, 1):
        product = wider(product, torch.float32)
    delta, a, scale = content.joined(product, use)
    memory: Tensor | None = None
    for rows in rows_of_tiles(delta.size(1), a.size(1), delta.device, delta.size(0)):
        memory = delta.new_empty((rows.stop - rows.start, a.size(1))) if memory is None else memory
        tile = equations.weight_gradient(delta[:, rows], a, out=memory[: rows.stop - rows.start])
        yield rows, (tile if is_number(scale, 1) else tile.mul_(scale)).to(dtype)


def rows_of_tiles(m: int, n: int, device: torch.device, r: int = 0) -> list[slice]:
    """Which rows are one tile of a matrix (m, n), made of r rows of factors: not so few that to read `a` for each takes longer."""
    most = _TILE if device.type == "cpu" else 16 * _TILE
    step = max(1, min(-(-m // 4), max(most // max(1, n), r // 2)))
    return [slice(i, min(i + step, m)) for i in range(0, m, step)]


def _accumulate(target: Tensor, dense: Tensor | None, alpha: float | Tensor, beta: float) -> Tensor:
    if beta != 1:  # 0 overwrites: it has to hide NaN
        target = target.zero_() if beta == 0 else target.mul_(beta)
    if dense is None:
        return target
    return target.addcmul_(dense, alpha) if isinstance(alpha, Tensor) else target.add_(dense, alpha=alpha)
