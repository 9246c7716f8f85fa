"""Checks of values and derivatives: against the reference, a float64 truth, and finite differences."""

import functools
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck as finite_differences, gradgradcheck as second_finite_differences

from manualgrad.conformance.case import (
    AsFunction,
    Case,
    gradients,
    gradients_of,
    is_differentiable,
    output_names,
    outputs,
    upstream,
)
from manualgrad.conformance.diagnosis import BOTH_LINE, GRADIENT_LINE, expect_equal, first_difference
from manualgrad.conformance.graph import Watch, refused_shape
from manualgrad.conformance.refusal import of_both
from manualgrad.conformance.result import Failed, NotApplicable
from manualgrad.dry_run import in_brief


def output(case: Case) -> str:
    """The reference's outputs: values, shapes and dtypes."""
    actual = outputs(case.layer, case.leaves())
    expected = outputs(case.reference, case.leaves())
    line = "print(layer(*inputs), reference(*inputs))"
    expect_equal(output_names(len(expected)), actual, expected, case.exact, line=line)
    return "as the reference's"


def gradient(case: Case) -> str:
    """The reference's gradients, for a random upstream gradient."""
    leaves = case.leaves()
    results = outputs(case.layer, leaves)
    with Watch(results) as watch:
        try:
            actual = gradients(results, leaves)
        except RuntimeError as error:
            raise Failed(refused_shape(error) or str(error), GRADIENT_LINE) from error
    mended = watch.mended()
    if mended:
        raise Failed(mended, _RETURNED if results[0].grad_fn in watch.nodes else GRADIENT_LINE)
    expected = gradients_of(case.reference, case.leaves())
    names = case.gradient_names()
    note = "" if first_difference(names, actual, expected, case.exact_gradients) is None else _right_where(case, names)
    expect_equal(names, actual, expected, case.exact_gradients, line=GRADIENT_LINE, note=note)
    return f"of {len(names)} tensors, as the reference's"


_RETURNED = (  # what backward itself returns, before autograd sums and casts it
    "y = layer(*inputs); found = y.grad_fn.apply(torch.ones_like(y)); "
    "print([(x.shape, x.dtype) for x in found if x is not None], [(x.shape, x.dtype) for x in wanted])"
)


def _right_where(case: Case, names: Sequence[str]) -> str:
    """A simpler case in which the wrong gradient is right, which tells what is missing."""
    first, values = case.values[0], case.values
    if isinstance(first, Tensor) and first.dim() > 1 and first.size(0) > 1:
        has_rows = [isinstance(x, Tensor) and x.dim() > 1 and x.size(0) == first.size(0) for x in case.given]
        one_row = [x[:1] if rows else x for x, rows in zip(case.given, has_rows, strict=True)]
        if _agree(case, names, [*one_row, *values[len(one_row) :]]):
            return "; right for a batch of one: a sum over the batch is missing"
    is_complex = [isinstance(x, Tensor) and x.is_complex() for x in values]
    real = [x.real.to(x.dtype) if imaginary else x for x, imaginary in zip(values, is_complex, strict=True)]
    if any(is_complex) and _agree(case, names, real):
        return "; right for real numbers: a conjugate is missing"
    return ""


def _agree(case: Case, names: Sequence[str], values: Sequence[Any]) -> bool:
    def found(function: AsFunction) -> list[Tensor]:
        leaves = [x.detach().clone().requires_grad_() if is_differentiable(x) else x for x in values]
        results = outputs(function, leaves)
        return gradients(results, leaves, [torch.ones_like(x) for x in results if x.requires_grad])

    try:
        return first_difference(names, found(case.layer), found(case.reference)) is None
    except Exception:
        return False


def frozen_inputs(case: Case) -> str:
    """Every subset of requires_grad: frozen tensors get no gradient, and none is computed for them."""
    k = len(case.differentiable)
    sizes = range(1, k + 1) if k <= 4 else (1, k - 1)
    subsets = [subset for size in sizes for subset in combinations(case.differentiable, size)]
    full = dict(zip(case.differentiable, gradients_of(case.reference, case.leaves()), strict=True))
    for subset in subsets:
        names = [case.names[i] for i in subset]
        others = [k for k, i in enumerate(case.differentiable) if i not in subset]
        freeze = (
            f"[wanted[i].requires_grad_(False) for i in {others}]; wanted = [x for x in wanted if x.requires_grad]; "
        )
        line = freeze + BOTH_LINE
        leaves = case.leaves(which=subset)
        try:
            results = outputs(case.layer, leaves)
            with Watch(results) as watch:
                actual = gradients(results, leaves)
        except Exception as error:
            raise Failed(f"with gradients for {', '.join(names)} only: {error}", line) from error
        if watch.computes_unneeded:
            frozen = [case.names[i] for i in case.differentiable if i not in subset]
            raise Failed(f"a gradient is computed for a frozen input ({', '.join(frozen)})", freeze + _COMPUTED)
        if any(isinstance(x, Tensor) and x.grad is not None for x in leaves):
            raise Failed("backward wrote to .grad itself", line)
        labels = [f"with gradients for {', '.join(names)} only, that by {name}" for name in names]
        exact = lambda s=subset: [case.exact_gradients()[case.differentiable.index(i)] for i in s]  # noqa: E731
        expect_equal(labels, actual, [full[i] for i in subset], exact, line=line)
    return f"{len(subsets)} subsets of requires_grad"


_COMPUTED = (
    "y = layer(*inputs); y.grad_fn.register_hook(lambda found, _: print([g is not None for g in found])); "
    "torch.autograd.backward(y.abs().sum())"
)


def gradcheck(case: Case) -> str:
    """First derivatives against finite differences, in float64."""
    is_large = sum(case.values[i].numel() for i in case.differentiable) > 300
    options = {"fast_mode": is_large, "check_batched_grad": False, "check_undefined_grad": True}
    return _by_differences(case, finite_differences, "torch.autograd.gradcheck(layer, inputs)", **options)


def gradgradcheck(case: Case) -> str:
    """Second derivatives against the reference's and finite differences, in float64."""
    line = "torch.autograd.gradgradcheck(layer, inputs)"
    actual, expected = of_both(lambda function: _second(case, function), case, line, "no second derivative")
    names = [f"the second derivative by {case.names[i]}" for i in case.differentiable]
    is_constant = not any(x.any() for x in actual)
    constant = ". If backward cannot be differentiated: @once_differentiable says so" if is_constant else ""
    exact = lambda: _second(case, case.reference)  # noqa: E731
    expect_equal(names, actual, expected, exact, line=line, tolerance=1e-9, note=constant)
    # Along one random direction: entry by entry would take longer than all other checks, and the entries were just compared.
    return _by_differences(case, second_finite_differences, line, "the second derivative is wrong: ", fast_mode=True)


def _second(case: Case, function: Any) -> list[Tensor]:
    """The gradients of the sum of squared first gradients, which depend on the upstream gradient too."""
    leaves = case.wide()
    results = [x for x in outputs(function, leaves) if x.requires_grad]
    sent = [g.requires_grad_() for g in upstream(results)]
    first = gradients(results, leaves, sent, create_graph=True)
    # backward(), not grad(): grad() skips the node that refuses a second derivative, which lies on no path to the leaves.
    torch.autograd.backward([(g * g.conj()).real.sum() for g in first if g.requires_grad])
    leaves = [leaves[i] for i in case.differentiable]
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]


def complex_numbers(case: Case) -> str:
    """The gradients for complex values, where the reference takes them: a layer that does not refuse them must be right."""
    if any(case.values[i].is_complex() for i in case.differentiable):
        raise NotApplicable("the inputs are complex: see gradient")
    generator = torch.Generator().manual_seed(2)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.complex128)
    drawn = {i: draw(case.values[i].shape) for i in case.differentiable}
    given = [drawn.get(i, x) for i, x in enumerate(case.given)]

    def found(function: AsFunction) -> list[Tensor]:
        leaves = [drawn[i].clone().requires_grad_() if i in drawn else x for i, x in enumerate(case.leaves())]
        return gradients_of(function, leaves)

    actual, expected = of_both(found, case, GRADIENT_LINE, inputs=given)
    names = case.gradient_names("for complex numbers, ")
    note = "; right for real numbers: a conjugate is missing. Add it, or raise in forward for complex inputs"
    exact = lambda: found(case.reference)  # noqa: E731
    expect_equal(names, actual, expected, exact, line=GRADIENT_LINE, note=note, inputs=given)
    return "complex inputs, as the reference's"


def _by_differences(case: Case, check: Callable[..., bool], line: str, where: str = "", **options: bool) -> str:
    """Raises Failed where the layer's derivatives are not those of finite differences, and NotApplicable where the reference's
    are not either: the function itself is not smooth at this point."""

    def flat(function: AsFunction) -> Callable[..., tuple[Tensor, ...]]:
        return lambda *arguments: tuple(x for x in outputs(function, arguments) if x.requires_grad)

    try:
        check(flat(case.layer), case.wide(), **options)
    except Exception as error:
        try:
            check(flat(case.reference), case.wide())
        except Exception as theirs:
            raise NotApplicable(f"nor by the reference: {in_brief(theirs)}") from theirs
        raise Failed(f"{where}{in_brief(error)}", line) from error
    return "finite differences in float64"
