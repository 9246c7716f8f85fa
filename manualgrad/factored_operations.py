"""What a `FactoredGradient` does when PyTorch calls an operation on it: the table.

First the operations that keep the factors, then those that consume them without a tensor of the weight's size, then those
whose result is dense by nature. Everything else goes to `materialise`: the value becomes dense, for good, and the
operation runs on that. Behind each name stands who calls it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from manualgrad import equations
from manualgrad.factored_gradient import Content, FactoredGradient
from manualgrad.update_rule import update


aten = torch.ops.aten


class FactorsLostWarning(UserWarning):
    """An operation needed every entry of a factored gradient, which is now dense and as large as its weight."""


def implements(*operations: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function into the table. It may return NotImplemented to leave a case to `materialise`."""

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
    if not _is_real_number(factor) or gradient.is_dense:
        return NotImplemented
    return gradient.like(_scaled(gradient, factor))


@implements(aten.mul_.Tensor, aten.mul_.Scalar)
def multiply_in_place(gradient: Any, factor: Any) -> Any:  # clip_grad_norm_, with a 0-dimensional tensor
    if not isinstance(gradient, FactoredGradient) or not _is_real_number(factor) or gradient.is_dense:
        return NotImplemented
    gradient.content.factors = _scaled(gradient, factor).factors
    return gradient


@implements(aten.div.Tensor, aten.div.Scalar)
def divide(gradient: Any, divisor: Any) -> Any:
    return multiply(gradient, _reciprocal(divisor)) if _is_real_number(divisor) else NotImplemented


@implements(aten.div_.Tensor, aten.div_.Scalar)
def divide_in_place(gradient: Any, divisor: Any) -> Any:  # manual averaging
    return multiply_in_place(gradient, _reciprocal(divisor)) if _is_real_number(divisor) else NotImplemented


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
    factors = tuple(f.to(device, "moving it") for f in gradient.content.factors)
    return gradient.like(Content(factors), dtype, torch.device(device))


@implements(aten.new_empty_strided.default)
def new_of_that_shape(gradient: FactoredGradient, size: Any, stride: Any, **options: Any) -> Any:
    # AccumulateGrad, before copy_, where somebody else still holds the new gradient
    if tuple(size) != tuple(gradient.shape) or (options.get("dtype") or gradient.dtype) != gradient.dtype:
        return torch.empty_strided(size, stride, **_made_like(gradient, options))
    return gradient.like(Content())


# Consume the factors without a tensor of the weight's size.


@implements(aten.add_.Tensor)
def add_in_place(target: Any, other: Any, *, alpha: float = 1) -> Any:  # AccumulateGrad; SGD's step
    if not isinstance(other, Tensor) or target.shape != other.shape:
        return NotImplemented
    if not isinstance(target, FactoredGradient):
        return other.add_to(target, alpha=alpha) if target.is_floating_point() else NotImplemented
    if not isinstance(other, FactoredGradient):  # the weight is also used by a layer whose gradient is dense
        if other.dtype != target.dtype:
            return NotImplemented
        if not target.is_dense:
            target.content.dense, target.content.factors = target.add_to(other * alpha), ()
        else:
            target.densify().add_(other, alpha=alpha)
    elif target.is_dense:
        other.add_to(target.densify(), alpha=alpha)
    elif other.is_dense:
        return add_in_place(target, other.densify(), alpha=alpha)
    else:
        target.content.factors += _scaled(other, alpha).factors
        _fold(target)
    return target


@implements(aten.sub_.Tensor)
def subtract_in_place(target: Any, other: Any, *, alpha: float = 1) -> Any:
    return add_in_place(target, other, alpha=-alpha)


@implements(aten.add.Tensor)
def add(x: Any, y: Any, *, alpha: float = 1) -> Any:  # the engine, where a weight is used twice; SGD's weight decay
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.shape != y.shape or x.dtype != y.dtype:
        return NotImplemented
    if isinstance(x, FactoredGradient) and isinstance(y, FactoredGradient) and not (x.is_dense or y.is_dense):
        total = x.like(Content(x.content.factors + _scaled(y, alpha).factors))
        return _fold(total)
    if isinstance(y, FactoredGradient):
        return y.add_to(x.to_dense() if isinstance(x, FactoredGradient) else x.clone(), alpha=alpha)
    return x.add_to(y * alpha)


@implements(aten.sub.Tensor)
def subtract(x: Any, y: Any, *, alpha: float = 1) -> Any:
    return add(x, y, alpha=-alpha)


@implements(aten.copy_.default)
def copy_in_place(target: Any, source: Any, non_blocking: bool = False) -> Any:
    # DDP, out of a gradient into its bucket and back; AccumulateGrad
    if not isinstance(source, Tensor) or target.shape != source.shape or target.device != source.device:
        return NotImplemented
    if not isinstance(target, FactoredGradient):
        return source.add_to(target, beta=0.0) if target.is_floating_point() else NotImplemented
    if target.is_dense:
        target.densify().copy_(source, non_blocking)
    elif isinstance(source, FactoredGradient) and not source.is_dense:
        target.content.factors = source.content.factors
    else:
        dense = source.densify() if isinstance(source, FactoredGradient) else source
        target.content.dense, target.content.factors = dense.to(target.dtype, copy=True), ()
    return target


@implements(aten.mul.out)
def multiply_into(x: Any, y: Any, *, out: Any) -> Any:  # DDP, into its bucket, times 1 / processes
    gradient, factor = (x, y) if isinstance(x, FactoredGradient) else (y, x)
    if not _is_real_number(factor) or isinstance(out, FactoredGradient) or out.shape != gradient.shape:
        return NotImplemented
    return gradient.add_to(out, alpha=factor, beta=0.0)


@implements(aten.linalg_vector_norm.default)
def vector_norm(
    gradient: FactoredGradient,
    ord: float = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:  # clip_grad_norm_, Tensor.norm
    axes = {0, 1} if dim is None else {d % 2 for d in dim}
    if gradient.is_dense or axes != {0, 1} or gradient.numel() == 0:
        return NotImplemented
    norm = (_two_norm(gradient) if ord == 2 else _norm_by_tiles(gradient, ord)).to(dtype or gradient.dtype)
    return norm.view(1, 1) if keepdim else norm


@implements(aten._amp_foreach_non_finite_check_and_unscale_.default)
def unscale(gradients: Sequence[Tensor], found_inf: Tensor, inverse_scale: Tensor) -> None:  # GradScaler.unscale_
    dense = [g.densify() if isinstance(g, FactoredGradient) else g for g in gradients if not _has_factors(g)]
    if dense:
        torch._amp_foreach_non_finite_check_and_unscale_(dense, found_inf, inverse_scale)
    for gradient in gradients:
        if _has_factors(gradient):
            torch.maximum(found_inf, _overflows(gradient).to(found_inf.dtype), out=found_inf)
            multiply_in_place(gradient, inverse_scale.reshape(()))


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
    velocities = velocities or [None] * len(weights)  # type: ignore[list-item]
    rest = [i for i, gradient in enumerate(gradients) if not _has_factors(gradient)]
    if rest:
        torch._fused_sgd_(
            [weights[i] for i in rest],
            [g.densify() if isinstance(g := gradients[i], FactoredGradient) else g for i in rest],
            [velocities[i] for i in rest if velocities[i] is not None],
            is_first_step=is_first_step,
            grad_scale=grad_scale,
            found_inf=found_inf,
            **options,
        )
    if found_inf is not None and found_inf.item():
        return
    for w, gradient, velocity in zip(weights, gradients, velocities, strict=True):
        if not _has_factors(gradient):
            continue
        if grad_scale is not None:
            divide_in_place(gradient, grad_scale.reshape(()))
        made = update(w, gradient, None if is_first_step else velocity, options)  # type: ignore[arg-type]
        if is_first_step and made is not None:
            velocity.copy_(made)


def _for_each(operation: Callable[..., Any], in_place: bool) -> Callable[..., Any]:
    """A foreach operation as a loop. Lists among its arguments go element by element."""

    def loop(tensors: Sequence[Tensor], *arguments: Any, **keywords: Any) -> list[Any] | None:
        results = []
        for i, tensor in enumerate(tensors):
            own = (x[i] if isinstance(x, list | tuple) else x for x in arguments)
            results.append(operation(tensor, *own, **keywords))
        return None if in_place else results

    return loop


for _overload, _operation in {  # torch.optim.SGD(foreach=True), its default on CUDA
    aten._foreach_add.List: torch.add,
    aten._foreach_mul.Scalar: torch.mul,
    aten._foreach_mul.Tensor: torch.mul,
    aten._foreach_neg.default: torch.neg,
    aten._foreach_norm.Scalar: torch.linalg.vector_norm,
}.items():
    implements(_overload)(_for_each(_operation, in_place=False))
for _overload, _operation in {
    aten._foreach_add_.List: Tensor.add_,
    aten._foreach_mul_.Scalar: Tensor.mul_,
    aten._foreach_mul_.Tensor: Tensor.mul_,
    aten._foreach_neg_.default: Tensor.neg_,
    aten._foreach_zero_.default: Tensor.zero_,
}.items():
    implements(_overload)(_for_each(_operation, in_place=True))


# Dense by nature.


@implements(aten.clone.default)
def clone(gradient: FactoredGradient, *, memory_format: Any = None) -> Tensor:  # SGD's first momentum buffer
    return gradient.to_dense()


def _made_like(operation: Any, gradient: FactoredGradient, *arguments: Any, **options: Any) -> Tensor:
    """A new tensor that takes only shape, dtype and device from the gradient."""
    prototype = torch.empty((), dtype=gradient.dtype, device=gradient.device).expand(gradient.shape)
    return operation(prototype, *arguments, **options)


for _overload in (
    aten.empty_like.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.new_empty.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
):
    implements(_overload)(partial(_made_like, _overload))

# clip_grad_value_: not linear, so the value becomes dense; whoever calls it has asked for that.
_expected_to_materialise = {aten.clamp_.default, aten.clamp_.Tensor, aten.clamp_min_.default, aten.clamp_max_.default}


# Everything else.

_warned: set[str] = set()
_forbidden = 0


@contextmanager
def forbid_densify() -> Iterator[None]:
    """Inside, an operation that would lose the factors of a gradient raises RuntimeError, and the gradient keeps them.

    For tests that a training step stays factored. It concerns operations that have no rule for factors; what is dense by
    design stays allowed: `clone`, `to_dense`, clipping by value, folding past the limit of accumulated rows, DDP's `copy_`.
    """
    global _forbidden
    _forbidden += 1
    try:
        yield
    finally:
        _forbidden -= 1


def materialise(operation: Any, arguments: tuple, keywords: dict[str, Any]) -> Any:
    """Make every factored gradient among the arguments dense, for good, and run the operation on that."""
    name = getattr(operation, "__name__", str(operation)).removesuffix(".default")
    gradients = [x for x in tree_leaves((arguments, keywords)) if isinstance(x, FactoredGradient)]
    if torch.Tag.inplace_view in getattr(operation, "tags", ()):
        raise RuntimeError(
            f"A factored gradient expected to keep its shape, got the in-place operation {name}. "
            "Use the operation that is not in place, or gradient.to_dense()."
        )
    if operation not in _expected_to_materialise and not all(gradient.is_dense for gradient in gradients):
        _lose_factors(name, gradients)
    wrapper = {id(gradient.densify()): gradient for gradient in gradients}
    arguments, keywords = tree_map_only(FactoredGradient, FactoredGradient.densify, (arguments, keywords))
    result = operation(*arguments, **keywords)
    # An in-place operation returns its argument: hand back the gradient itself, not the tensor inside.
    return tree_map_only(Tensor, lambda tensor: wrapper.get(id(tensor), tensor), result)


def _lose_factors(name: str, gradients: list[FactoredGradient]) -> None:
    shape = tuple(gradients[0].shape)
    sentence = (
        f"{name} needs every entry of a factored gradient of shape {shape}, which {{}} dense and as large as its weight. "
        "If that is too much, read .delta and .a or .norm() instead, or work on gradient.to_dense()."
    )
    if _forbidden:
        raise RuntimeError(sentence.format("would become") + " (inside forbid_densify())")
    if name not in _warned:
        warnings.warn(sentence.format("becomes"), FactorsLostWarning, stacklevel=4)
        _warned.add(name)  # after the warning: where warnings are errors, every time is an error


FactoredGradient.fallback = staticmethod(materialise)


# Parts of the above.


def _has_factors(gradient: Tensor) -> bool:
    return isinstance(gradient, FactoredGradient) and not gradient.is_dense


def _is_real_number(x: Any) -> bool:
    if isinstance(x, Tensor):
        return x.dim() == 0 and x.is_floating_point() and not isinstance(x, FactoredGradient)
    return isinstance(x, int | float)


def _reciprocal(x: float | Tensor) -> float | Tensor:
    if isinstance(x, Tensor):
        return x.reciprocal()
    return 1 / x if x != 0 else math.copysign(math.inf, x)


def _scaled(gradient: FactoredGradient, factor: float | Tensor) -> Content:
    if not isinstance(factor, Tensor) and factor == 1:
        return gradient.content
    return Content(tuple(f._replace(scale=f.scale * factor) for f in gradient.content.factors))


def _fold(gradient: FactoredGradient) -> FactoredGradient:
    """Make the gradient dense once its factors take as much memory as that: r (m + n) >= m n."""
    m, n = gradient.shape
    if gradient.rank * (m + n) >= m * n:
        gradient.densify()
    return gradient


_ROWS = 256  # of a Gram matrix at once


def _two_norm(gradient: FactoredGradient) -> Tensor:
    """|dC/dw| in float64: entries of both signs cancel in the sum over Gram matrices, and float32 would lose them."""
    delta, a = gradient.delta.double(), gradient.a.double()
    squared = torch.zeros((), dtype=torch.float64, device=delta.device)
    for i in range(0, delta.size(0), _ROWS):  # the Gram matrices are symmetric: half of their blocks will do
        block, after = slice(i, i + _ROWS), slice(i + _ROWS, None)
        squared += equations.inner_products(delta[block], a[block], delta[block], a[block])
        squared += 2 * equations.inner_products(delta[block], a[block], delta[after], a[after])
    return squared.clamp(min=0).sqrt()


def _tiles(gradient: FactoredGradient) -> Iterator[Tensor]:
    """The dense gradient, a sixteenth of its rows at a time."""
    delta, a = gradient.delta, gradient.a
    for part in delta.split(max(1, delta.size(1) // 16), dim=1):
        yield equations.weight_gradient(part, a)


def _norm_by_tiles(gradient: FactoredGradient, order: float) -> Tensor:
    norms = torch.stack([torch.linalg.vector_norm(tile, order) for tile in _tiles(gradient)])
    return norms.sum() if order == 0 else torch.linalg.vector_norm(norms, order)


def _overflows(gradient: FactoredGradient) -> Tensor:
    """Whether an entry is inf or NaN, as a 0-dimensional tensor.

    No entry exceeds sum_r max|delta_r| max|a_r|; only where that bound is not finite either, the entries are looked at. On a
    GPU the bound decides alone, since looking would wait for it.
    """
    if gradient.rank == 0:
        return torch.zeros((), device=gradient.device)
    bound = torch.sum(gradient.delta.abs().amax(1).double() * gradient.a.abs().amax(1).double())
    overflows = ~(bound <= torch.finfo(gradient.dtype).max)  # NaN is not <= anything
    if gradient.device.type == "cpu" and overflows:
        overflows = ~torch.stack([tile.isfinite().all() for tile in _tiles(gradient)]).all()
    return overflows
