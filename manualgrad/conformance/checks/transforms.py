"""Checks of `torch.func`: a layer mapped over samples, and differentiated forwards."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from manualgrad.comparison.difference import widened
from manualgrad.conformance.case import AsFunction, Case, is_differentiable
from manualgrad.conformance.diagnosis import expect_equal
from manualgrad.conformance.refusal import of_both
from manualgrad.conformance.result import NotApplicable


def vmap(case: Case) -> str:
    """torch.func.vmap over samples, of outputs and gradients, against the reference's."""
    inputs = range(len(case.given))
    axes = tuple(0 if i in inputs and isinstance(x, Tensor) else None for i, x in enumerate(case.values))
    if all(axis is None for axis in axes):
        raise NotApplicable("no tensor among the inputs")
    values = [x.detach() if isinstance(x, Tensor) else x for x in case.values]
    stacked = [
        x if axis is None else torch.stack([x, 0.5 * x if is_differentiable(x) else x])
        for x, axis in zip(values, axes, strict=True)
    ]

    def batched(function: AsFunction, wide: bool = False) -> list[Tensor]:
        def one(*arguments: Any) -> list[Tensor]:
            chosen = [arguments[i] for i in case.differentiable]
            results, pull, *_ = torch.func.vjp(_of_differentiable(case, function, arguments), *chosen)
            return [*results, *pull([torch.ones_like(x) for x in results])]

        torch.manual_seed(0)
        values = [widened(x) if wide and is_differentiable(x) else x for x in stacked]
        return list(torch.func.vmap(one, axes, randomness="same")(*values))

    differentiable = tuple(i for i in case.differentiable if i in inputs)
    line = (
        "from torch.func import grad, vmap; print(*(vmap("
        + (f"grad(lambda *x: f(*x).abs().square().sum(), {differentiable})" if differentiable else "f")
        + f", {axes[: len(case.given)]})(*[torch.stack([x, x * (0.5 if x.requires_grad else 1)]) if isinstance(x, torch.Tensor) "
        + "else x for x in inputs]) for f in (layer, reference)), sep='\\n')"
    )
    _compare(case, batched, "mapped, tensor", line)
    return "outputs and per-sample gradients"


def jvp(case: Case) -> str:
    """torch.func.jvp, forward-mode differentiation, against the reference's."""
    generator = torch.Generator().manual_seed(3)
    fixed = case.wide(which=())
    primals = tuple(fixed[i] for i in case.differentiable)
    tangents = tuple(torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in primals)

    def forwards(function: AsFunction, wide: bool = True) -> list[Tensor]:
        torch.manual_seed(0)
        return list(torch.func.jvp(_of_differentiable(case, function, fixed), primals, tangents)[1])

    line = (
        "for f in (layer, reference): print(torch.func.jvp(f, tuple(inputs), tuple(map(torch.ones_like, inputs)))[1])"
    )
    _compare(case, forwards, "the tangent of output", line)
    return "forward mode"


def _of_differentiable(case: Case, function: AsFunction, arguments: Sequence[Any]) -> Any:
    """The function of what is differentiable alone, with the other arguments as given."""

    def of_differentiable(*values: Tensor) -> list[Tensor]:
        filled = list(arguments)
        for i, value in zip(case.differentiable, values, strict=True):
            filled[i] = value
        results = torch.utils._pytree.tree_leaves(function(*filled))
        return [x for x in results if is_differentiable(x)]

    return of_differentiable


def _compare(case: Case, transformed: Any, label: str, line: str) -> None:
    actual, expected = of_both(transformed, case, line)
    names = [f"{label} {i}" for i in range(len(expected))]
    expect_equal(names, actual, expected, lambda: transformed(case.reference, wide=True), line=line)
