"""What a `FactoredGradient` does when PyTorch calls an operation on it: the table.

First the operations that keep the factors, then those that consume them without a tensor of the weight's size. What reads a
gradient and leaves it as it is stands in `reading_operations`, operations on lists of tensors in `list_operations`, the fused
step of SGD in `manualgrad.optim.fused_sgd`. Everything else goes to `densify`: the value becomes dense, for good, and the
operation runs on that. Behind each name stands who calls it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manualgrad.factored.cost import pays_to_keep
from manualgrad.factored.factors import Content, on_host, wider
from manualgrad.factored.gradient import FactoredGradient
from manualgrad.factored.norms import overflows


aten = torch.ops.aten


def implements(*operations: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function into the table. It may return NotImplemented to leave a case to `densify`."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        for operation in operations:
            FactoredGradient.operations[operation] = function
        return function

    return enter


# Keep the factors.


@implements(aten.detach.default, aten.alias.default)
def detach(gradient: FactoredGradient) -> FactoredGradient:  # AccumulateGrad, on a new gradient; .data
    return gradient.like(gradient.content)


@implements(aten.mul.Tensor, aten.mul.Scalar)
def multiply(x: Any, y: Any) -> Any:
    gradient, factor = (x, y) if isinstance(x, FactoredGradient) else (y, x)
    if not _is_real_number(factor) or gradient.is_dense or (content := _scaled(gradient, factor)) is None:
        return NotImplemented
    return gradient.like(content)


@implements(aten.mul_.Tensor, aten.mul_.Scalar)
def multiply_in_place(gradient: Any, factor: Any) -> Any:  # clip_grad_norm_, with a 0-dimensional tensor
    if not isinstance(gradient, FactoredGradient) or not _is_real_number(factor) or gradient.is_dense:
        return NotImplemented
    if (content := _scaled(gradient, factor)) is None:
        return NotImplemented
    gradient.content.factors = content.factors
    return gradient


@implements(aten.div.Tensor, aten.div.Scalar)
def divide(gradient: Any, divisor: Any) -> Any:
    return multiply(gradient, _reciprocal(divisor, gradient.dtype)) if _is_real_number(divisor) else NotImplemented


@implements(aten.div_.Tensor, aten.div_.Scalar)
def divide_in_place(gradient: Any, divisor: Any) -> Any:  # manual averaging
    return (
        multiply_in_place(gradient, _reciprocal(divisor, gradient.dtype))
        if _is_real_number(divisor)
        else NotImplemented
    )


@implements(aten.neg.default)
def negate(gradient: FactoredGradient) -> Any:  # SGD with maximize
    return multiply(gradient, -1.0)


@implements(aten.neg_.default)
def negate_in_place(gradient: FactoredGradient) -> Any:
    return multiply_in_place(gradient, -1.0)


@implements(aten.zero_.default)
def zero_in_place(gradient: FactoredGradient) -> Any:  # zero_grad(set_to_none=False)
    if gradient.is_dense:
        return NotImplemented
    gradient.content.factors = ()
    return gradient


@implements(aten._to_copy.default)
def convert(gradient: FactoredGradient, **options: Any) -> Any:  # Module.to, half, cpu
    dtype, device = options.get("dtype") or gradient.dtype, options.get("device") or gradient.device
    if gradient.is_dense or not dtype.is_floating_point:
        return NotImplemented
    content = Content(tuple(f.mapped(lambda x: x.to(device), "converting it") for f in gradient.content.factors))
    if not _has_the_same_entries(gradient, dtype):
        content = Content(dense=gradient.to_dense().to(device=device, dtype=dtype))
    return gradient.like(content, dtype, torch.device(device))


@implements(aten.new_empty_strided.default)
def new_of_that_shape(gradient: FactoredGradient, size: Any, stride: Any, **options: Any) -> Any:
    # AccumulateGrad, before copy_, where somebody else still holds the new gradient
    if tuple(size) != tuple(gradient.shape) or (options.get("dtype") or gradient.dtype) != gradient.dtype:
        prototype = torch.empty((), dtype=gradient.dtype, device=gradient.device).expand(gradient.shape)
        return prototype.new_empty_strided(size, stride, **options)
    return gradient.like(Content())


# Consume the factors without a tensor of the weight's size.


@implements(aten.add_.Tensor)
def add_in_place(target: Any, other: Any, *, alpha: Any = 1) -> Any:  # AccumulateGrad; SGD's step
    if not isinstance(other, Tensor) or target.shape != other.shape:
        return NotImplemented
    if isinstance(other, FactoredGradient) and not isinstance(target, FactoredGradient):
        return other.add_to(target, alpha=alpha) if target.is_floating_point() else NotImplemented
    if not isinstance(other, FactoredGradient):  # the weight is also used by a layer whose gradient is dense
        if other.dtype != target.dtype:
            return NotImplemented
        if not target.is_dense:
            target.content.become_dense(target.add_to(other * alpha))
        else:
            target.densify().add_(other, alpha=alpha)
    elif target.is_dense:
        other.add_to(target.densify(), alpha=alpha)
    elif other.is_dense:
        return add_in_place(target, other.densify(), alpha=alpha)
    else:
        _append(target, other, alpha)
    return target


@implements(aten.sub_.Tensor)
def subtract_in_place(target: Any, other: Any, *, alpha: float = 1) -> Any:
    return add_in_place(target, other, alpha=-alpha)


@implements(aten.add.Tensor)
def add(x: Any, y: Any, *, alpha: float = 1) -> Any:  # the engine, where a weight is used twice; SGD's weight decay
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.shape != y.shape or x.dtype != y.dtype:
        return NotImplemented
    if isinstance(x, FactoredGradient) and isinstance(y, FactoredGradient) and not (x.is_dense or y.is_dense):
        return _append(x.like(Content(x.content.factors)), y, alpha)
    if isinstance(y, FactoredGradient):
        return y.add_to(x.to_dense() if isinstance(x, FactoredGradient) else x.clone(), alpha=alpha)
    return x.add_to(y * alpha)  # type: ignore[attr-defined]  # then x is the factored one


@implements(aten.sub.Tensor)
def subtract(x: Any, y: Any, *, alpha: float = 1) -> Any:
    return add(x, y, alpha=-alpha)


@implements(aten.copy_.default)
def copy_in_place(target: Any, source: Any, non_blocking: bool = False) -> Any:
    # DDP, out of a gradient into its bucket and back; AccumulateGrad
    if not isinstance(source, Tensor) or target.shape != source.shape or target.device != source.device:
        return NotImplemented
    if isinstance(source, FactoredGradient) and source.is_dense:
        source = source.densify()
    if not isinstance(target, FactoredGradient):
        if isinstance(source, FactoredGradient):
            return source.add_to(target, beta=0.0) if target.is_floating_point() else NotImplemented
        return target.copy_(source, non_blocking)
    if target.is_dense:
        target.densify().copy_(source, non_blocking)
    elif isinstance(source, FactoredGradient) and _has_the_same_entries(source, target.dtype):
        target.content.factors = source.content.factors
    elif isinstance(source, FactoredGradient):
        target.content.become_dense(source.to_dense(target.dtype))
    else:
        target.content.become_dense(source.to(target.dtype, copy=True))
    return target


@implements(aten.mul.out)
def multiply_into(x: Any, y: Any, *, out: Any) -> Any:  # DDP, into its bucket, times 1 / processes
    gradient, factor = (x, y) if isinstance(x, FactoredGradient) else (y, x)
    if not _is_real_number(factor) or isinstance(out, FactoredGradient) or out.shape != gradient.shape:
        return NotImplemented
    return gradient.add_to(out, alpha=factor, beta=0.0)


# Parts of the above.


def _is_real_number(x: Any) -> bool:
    if isinstance(x, Tensor):
        return x.dim() == 0 and x.is_floating_point() and not isinstance(x, FactoredGradient)
    return isinstance(x, int | float)


def _reciprocal(x: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    x = on_host(x)
    if isinstance(x, Tensor):
        return x.to(wider(x.dtype, wider(dtype, torch.float32))).reciprocal()
    return 1 / x if x != 0 else math.copysign(math.inf, x)


def _scaled(gradient: FactoredGradient, factor: float | Tensor) -> Content | None:
    """The factors times a number, with a content of its own: the result is no alias. None if only entries can bear it.

    An infinite scale would meet zeros within the product, and beyond these limits float32's range would be left on the way.
    """
    factor = on_host(factor)
    if isinstance(factor, Tensor):  # a scale in half precision could not hold the ones before it
        factor = factor.to(wider(factor.dtype, torch.float32))
    scaled = tuple(f._replace(scale=f.scale * factor) for f in gradient.content.factors)
    for scale in (f.scale for f in scaled if not isinstance(f.scale, Tensor)):
        if not (1e-30 < abs(scale) < 1e30 or scale == 0 or scale != scale):
            return None
    return Content(scaled)


def _append(total: FactoredGradient, other: FactoredGradient, alpha: float | Tensor) -> FactoredGradient:
    """total += alpha * other. Dense once the factors are too many."""
    content = _scaled(other, alpha) if _has_the_same_entries(other, total.dtype) else None
    if content is None:
        other.add_to(total.densify(), alpha=alpha)
        return total
    total.content.factors += content.factors
    if not pays_to_keep(total.rank, *total.shape):
        total.densify()
    return total


def _has_the_same_entries(gradient: FactoredGradient, dtype: torch.dtype) -> bool:
    """Whether the factors, read in another dtype, have the entries that a cast gives. It rounds the product, not the factors.

    To a narrower dtype they have. To a wider one only if they are no wider than the gradient itself, which has rounded their
    product, and if that has not overflown.
    """
    common = wider(gradient.dtype, dtype)
    if common != dtype or dtype == gradient.dtype:
        return common == gradient.dtype
    is_own = all(wider(f.delta.dtype, gradient.dtype) == gradient.dtype for f in gradient.content.factors)
    return is_own and not overflows(gradient)
