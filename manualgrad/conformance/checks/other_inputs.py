"""The check with other numbers and sizes than those given: where layers have branches of their own."""

import functools
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from manualgrad.conformance.case import Case, is_differentiable
from manualgrad.conformance.refusal import expect_equal_on
from manualgrad.conformance.result import NotApplicable, NotSupported


def other_inputs(case: Case) -> str:
    """Numbers ten and a thousand times as large, all negative, all positive; more than 64 rows; square weights."""
    tried: dict[str, None] = {}
    for name, changed in _variants(case):
        with suppress(NotApplicable, NotSupported):  # such as a loss of probabilities, for numbers that are none
            expect_equal_on(case, changed, f"with {name}")
            tried[name] = None
    if not tried:
        raise NotApplicable("nor by the reference")
    return ", ".join(tried)


def _variants(case: Case) -> list[tuple[str, list[Any]]]:
    """Each with a name, and all values. Inputs are changed together, and the first alone."""
    inputs = [i for i in case.differentiable if i < len(case.given)]
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "large numbers": lambda x: 10 * x,
        "very large numbers": lambda x: 1000 * x,
        "negative numbers": lambda x: -x.abs() if x.is_floating_point() else x,
        "positive numbers": lambda x: x.abs() if x.is_floating_point() else x,
    }
    which = [inputs, inputs[:1]] if len(inputs) > 1 else [inputs] if inputs else []
    variants = [(name, _changed(case, chosen, change)) for name, change in changes.items() for chosen in which]
    first = case.values[0]
    if isinstance(first, Tensor) and first.dim() > 1 and first.size(0):
        which = [case.with_rows_as_the_first(), [0]]
        variants += [("more than 64 rows", _changed(case, chosen, _more_rows)) for chosen in which]
    if not isinstance(case.original, torch.nn.Module):  # a module's parameters have the sizes that it was made with
        shapes = [x.shape for x in case.given[1:] if isinstance(x, Tensor) and x.dim() == 2]
        for small, large in {(min(shape), max(shape)) for shape in shapes if min(shape) < max(shape)}:
            cut = functools.partial(_cut, small=small, large=large)
            variants.append(("square weights", _changed(case, range(len(case.given)), cut)))
    return variants


def _changed(case: Case, which: Collection[int], change: Callable[[Tensor], Tensor]) -> list[Any]:
    return [change(x.detach()) if i in which and isinstance(x, Tensor) else x for i, x in enumerate(case.values)]


def _more_rows(x: Tensor) -> Tensor:
    copies = range(1, 2 + 65 // len(x))
    return torch.cat([x / i if is_differentiable(x) else x for i in copies])


def _cut(x: Tensor, small: int, large: int) -> Tensor:
    for axis, size in enumerate(x.shape):
        x = x.narrow(axis, 0, small) if size == large else x
    return x.clone()
