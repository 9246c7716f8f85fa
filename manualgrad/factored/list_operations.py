"""What factored gradients do in operations on whole lists of tensors: foreach optimizers, loss scaling.

Lists may mix factored gradients with dense ones. Before any tensor of a list is changed, factors that share its memory are
copied: they may belong to a later gradient of the list.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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


def as_dense(gradient: Tensor, w: Tensor) -> Tensor:
    """A gradient that has no factors, as a plain tensor in the weight's order of memory, which fused kernels take for granted."""
    if not isinstance(gradient, FactoredGradient):
        return gradient
    if gradient.densify().stride() != w.stride():
        gradient.content.become_dense(torch.empty_like(w).copy_(gradient.densify()))
    return gradient.densify()


@implements(aten._amp_foreach_non_finite_check_and_unscale_.default)
def unscale(gradients: Sequence[Tensor], found_inf: Tensor, inverse_scale: Tensor) -> None:  # GradScaler.unscale_
    dense = [g.densify() if isinstance(g, FactoredGradient) else g for g in gradients if not has_factors(g)]
    if dense:
        torch._amp_foreach_non_finite_check_and_unscale_(dense, found_inf, inverse_scale)
    for gradient in gradients:
        if has_factors(gradient):
            torch.maximum(found_inf, overflows(gradient).to(found_inf.dtype), out=found_inf)
            multiply_in_place(gradient, inverse_scale.reshape(()))


def for_each(one: Any, is_in_place: bool, tensors: Sequence[Tensor], *arguments: Any, **keywords: Any) -> Any:
    """A foreach operation as a loop of `one` over the elements of `tensors` and of all lists among the arguments."""
    if is_in_place:
        copy_before_writing(tensors)
    if one in _WITH_VALUE and len(arguments) == 3:  # which the operation on one tensor takes by its name
        *arguments, value = arguments  # type: ignore[assignment]
        keywords["value"] = value.tolist() if isinstance(value, Tensor) else value
    results = []
    for i, tensor in enumerate(tensors):
        own = (x[i] if isinstance(x, list | tuple) else x for x in arguments)
        named = {name: x[i] if isinstance(x, list | tuple) else x for name, x in keywords.items()}
        results.append(one(tensor, *own, **named))
    return None if is_in_place else results


_WITH_VALUE = (aten.addcmul, aten.addcmul_, aten.addcdiv, aten.addcdiv_)
# What optimizers call with foreach=True, their default on CUDA.
for _name in (
    "abs abs_ add add_ addcdiv addcdiv_ addcmul addcmul_ copy_ div div_ lerp lerp_ mul mul_ neg neg_ sign sign_ sub sub_ zero_"
).split():
    _packet = getattr(aten, f"_foreach_{_name}")
    for _overload in _packet.overloads():
        if not _overload.endswith("out"):
            implements(getattr(_packet, _overload))(partial(for_each, getattr(aten, _name), _name.endswith("_")))
implements(aten._foreach_norm.Scalar)(partial(for_each, torch.linalg.vector_norm, False))
