"""What factored gradients do in operations on whole lists of tensors: foreach optimizers, loss scaling.

Lists may mix factored gradients with dense ones. Before any tensor of a list is changed, factors that share its memory are
copied: they may belong to a later gradient of the list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from manualgrad.factored.aliasing import copy_before_writing
from manualgrad.factored.gradient import FactoredGradient
from manualgrad.factored.norms import overflows
from manualgrad.factored.operations import implements, multiply_in_place


aten = torch.ops.aten


def has_factors(gradient: Tensor) -> TypeGuard[FactoredGradient]:
    return isinstance(gradient, FactoredGradient) and not gradient.is_dense


@implements(aten._amp_foreach_non_finite_check_and_unscale_.default)
def unscale(gradients: Sequence[Tensor], found_inf: Tensor, inverse_scale: Tensor) -> None:  # GradScaler.unscale_
    dense = [g.densify() if isinstance(g, FactoredGradient) else g for g in gradients if not has_factors(g)]
    if dense:
        torch._amp_foreach_non_finite_check_and_unscale_(dense, found_inf, inverse_scale)
    for gradient in gradients:
        if has_factors(gradient):
            torch.maximum(found_inf, overflows(gradient).to(found_inf.dtype), out=found_inf)
            multiply_in_place(gradient, inverse_scale.reshape(()))


def for_each(operation: Callable[..., Any], in_place: bool) -> Callable[..., Any]:
    """A foreach operation as a loop. Lists among its arguments go element by element."""

    def loop(tensors: Sequence[Tensor], *arguments: Any, **keywords: Any) -> list[Any] | None:
        if in_place:
            copy_before_writing(tensors)
        results = []
        for i, tensor in enumerate(tensors):
            own = (x[i] if isinstance(x, list | tuple) else x for x in arguments)
            results.append(operation(tensor, *own, **keywords))
        return None if in_place else results

    return loop


_new: dict[Any, Any] = {  # torch.optim.SGD(foreach=True), its default on CUDA
    aten._foreach_add.List: torch.add,
    aten._foreach_mul.Scalar: torch.mul,
    aten._foreach_mul.Tensor: torch.mul,
    aten._foreach_neg.default: torch.neg,
    aten._foreach_norm.Scalar: torch.linalg.vector_norm,
}
_in_place: dict[Any, Any] = {
    aten._foreach_add_.List: Tensor.add_,
    aten._foreach_mul_.Scalar: Tensor.mul_,
    aten._foreach_mul_.Tensor: Tensor.mul_,
    aten._foreach_neg_.default: Tensor.neg_,
    aten._foreach_zero_.default: Tensor.zero_,
}
for _list_operation, _operation in (_new | _in_place).items():
    implements(_list_operation)(for_each(_operation, in_place=_list_operation in _in_place))
