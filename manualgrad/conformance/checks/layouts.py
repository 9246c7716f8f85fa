"""Checks with other strides of inputs and upstream gradients, and with more, fewer or empty axes."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from manualgrad.conformance.case import AsFunction, Case, gradients, is_differentiable, outputs, run_on, upstream
from manualgrad.conformance.diagnosis import BOTH_LINE, expect_equal
from manualgrad.conformance.refusal import expect_equal_on
from manualgrad.conformance.result import Failed, NotApplicable


def strided(x: Tensor) -> Tensor:
    """The same values with gaps between them, and the last two axes swapped in memory."""
    wide = torch.stack([x, x], -1)
    if x.dim() > 1:
        wide = wide.transpose(-3, -2).contiguous().transpose(-3, -2)
    return wide[..., 0]


def non_contiguous(case: Case) -> str:
    """Inputs with gaps and swapped axes."""
    changed = [strided(x) if is_differentiable(x) else x for x in case.values]
    expression = "x.mT.contiguous().mT if x.dim() > 1 else x.repeat_interleave(2)[::2]"
    _compare(case, changed, "with non-contiguous inputs", expression)
    return "gaps, swapped axes"


def expanded(case: Case) -> str:
    """An input whose rows are one row in memory."""
    changed = [x[:1].expand(x.shape) if is_differentiable(x) and x.dim() > 0 else x for x in case.values]
    _compare(case, changed, "with expanded inputs", "x[:1].expand(x.shape) if x.dim() else x")
    return "stride 0"


def upstream_layouts(case: Case) -> str:
    """Upstream gradients with gaps, with swapped axes, and expanded from one number, as sum() sends them."""
    for name, change, line in (
        ("a non-contiguous", strided, _STRIDED),
        ("an expanded", lambda g: g.flatten()[0].expand(g.shape) if g.numel() else g, _EXPANDED),
    ):

        def found(function: AsFunction, leaves: list[Any], change: Callable[[Tensor], Tensor] = change) -> list[Tensor]:
            results = [x for x in outputs(function, leaves) if x.requires_grad]
            return gradients(results, leaves, [change(g) for g in upstream(results)])

        try:
            by_layer, by_reference = (found(function, case.leaves()) for function in (case.layer, case.reference))
        except Exception as error:
            raise Failed(f"with {name} upstream gradient: {error}", line) from error
        exact = lambda found=found: found(case.reference, case.wide())  # noqa: E731
        names = case.gradient_names(f"with {name} upstream gradient, ")
        expect_equal(names, by_layer, by_reference, exact, line=line)
    return "gaps, swapped axes, stride 0"


_STRIDED = (
    "y = reference(*inputs); g = torch.randn(y.shape[::-1], dtype=y.dtype).permute(*range(y.dim())[::-1]); "
    "print(*(torch.autograd.grad(f(*inputs), wanted, g) for f in (layer, reference)), sep='\\n')"
)
_EXPANDED = "for f in (layer, reference): print(torch.autograd.grad(f(*inputs).sum().abs(), wanted))"


def _with_shape(case: Case, change: Callable[[Tensor], Tensor], name: str) -> str:
    first = case.values[0]
    if not isinstance(first, Tensor) or first.dim() < 2 and not (first.dim() == 1 and name == "one axis more"):
        raise NotApplicable("the first input has no batch axis")
    for which in (
        case.with_rows_as_the_first(),
        [0],
    ):  # whether the other inputs belong to the samples is for the reference to say
        changed = [change(x) if i in which else x for i, x in enumerate(case.values)]
        with suppress(NotApplicable):
            expect_equal_on(case, changed, f"with {name}")
            return f"first input {tuple(changed[0].shape)}"
    raise NotApplicable(f"{name}: nor by the reference")


def _with_an_axis(x: Tensor) -> Tensor:
    return torch.stack([x, 2 * x if is_differentiable(x) else x])


# A single row, which breaks code that squeezes the batch axis; no rows at all; a leading axis; a sample without a batch axis.
batch_of_one = partial(_with_shape, change=lambda x: x[:1], name="a batch of one")
empty_batch = partial(_with_shape, change=lambda x: x[:0], name="an empty batch")
more_axes = partial(_with_shape, change=_with_an_axis, name="one axis more")
fewer_axes = partial(_with_shape, change=lambda x: x[0], name="no batch axis")


def _compare(case: Case, changed: list[Any], name: str, expression: str) -> None:
    line = (
        f"inputs = [({expression}).detach().requires_grad_() if isinstance(x, torch.Tensor) and x.requires_grad else x "
        f"for x in inputs]; wanted = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]; {BOTH_LINE}"
    )
    try:
        expected = run_on(case.reference, changed)
    except Exception as error:
        raise NotApplicable("nor by the reference") from error
    try:
        actual = run_on(case.layer, changed)
    except Exception as error:
        raise Failed(f"{name}: {error}", line) from error
    exact = lambda: run_on(case.reference, changed, wide=True)  # noqa: E731
    expect_equal(case.result_names(expected, f"{name}, "), actual, expected, exact, line=line)
