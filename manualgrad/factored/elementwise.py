"""What PyTorch computes entry by entry runs on a few rows of a factored gradient at a time, each made while it is used.

Most optimizers are made of such operations (`lerp_`, `addcmul_`, ...). One that writes into a plain tensor needs no memory of
the weight's size; one that returns a tensor makes that one. In both cases the gradient keeps its factors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from manualgrad.factored.aliasing import copy_before_writing_to


def by_rows(cls: Any, operation: Any, arguments: tuple, keywords: dict[str, Any]) -> Any:
    """The operation on each tile of rows of `cls` (FactoredGradient) and the rows of other tensors that meet it.

    NotImplemented for an operation that is not entry by entry, writes into a factored gradient, or has nothing factored.
    """
    if torch.Tag.pointwise not in operation.tags or torch.Tag.nondeterministic_seeded in operation.tags:
        return NotImplemented
    tensors = [x for x in (*arguments, *keywords.values()) if isinstance(x, Tensor)]
    gradients = {id(x): x for x in tensors if isinstance(x, cls)}
    shape = next(iter(gradients.values())).shape
    if all(g.is_dense for g in gradients.values()) or not all(_meets(x, shape, cls) for x in tensors):
        return NotImplemented
    target = _written(operation, arguments, keywords)
    if target is not None:
        if (
            isinstance(target, cls)
            or target.shape != shape
            or _reads_elsewhere(target, [x for x in tensors if id(x) not in gradients])
        ):
            return NotImplemented
        for gradient in gradients.values():
            copy_before_writing_to(target, gradient.content)
    result = target
    for tiles in zip(*(gradient.tiles() for gradient in gradients.values()), strict=True):
        rows, own = tiles[0][0], {key: tile for key, (_, tile) in zip(gradients, tiles, strict=True)}
        part = operation(
            *(_rows(x, rows, shape, own) for x in arguments),
            **{name: _rows(x, rows, shape, own) for name, x in keywords.items()},
        )
        if target is None:
            if not isinstance(part, Tensor):
                return NotImplemented
            result = part.new_empty(shape) if result is None else result
            result[rows] = part
    return NotImplemented if result is None else result


def _written(operation: Any, arguments: tuple, keywords: dict[str, Any]) -> Any:
    """The argument that the operation writes into: its first, or `out`; None if it writes into none."""
    written = [x.name for x in operation._schema.arguments if x.alias_info is not None and x.alias_info.is_write]
    return None if not written else keywords.get(written[0], arguments[0])


def _meets(x: Tensor, shape: torch.Size, cls: Any) -> bool:
    """Whether broadcasting x against that shape gives that shape, and a factored one has it."""
    if isinstance(x, cls) or x.dim() > 2:
        return x.shape == shape
    return all(own in (1, size) for own, size in zip(reversed(x.shape), reversed(shape), strict=False))


def _rows(x: Any, rows: slice, shape: torch.Size, tiles: dict[int, Tensor]) -> Any:
    if not isinstance(x, Tensor):
        return x
    if id(x) in tiles:
        return tiles[id(x)]
    return x[rows] if x.dim() == 2 and x.size(0) == shape[0] else x


def _reads_elsewhere(target: Tensor, tensors: list[Tensor]) -> bool:
    """Whether a tensor shares the target's memory in another order, so that rows would be read after they were written."""
    memory = target.untyped_storage().data_ptr()
    return any(
        x.untyped_storage().data_ptr() == memory
        and (x.data_ptr(), x.stride(), x.shape) != (target.data_ptr(), target.stride(), target.shape)
        for x in tensors
    )
