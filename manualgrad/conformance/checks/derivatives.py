"""Checks of values and derivatives: against the reference, a float64 truth, and finite differences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck as finite_differences, gradgradcheck as second_finite_differences

from manualgrad.conformance.case import Case, gradients, gradients_of, output_names, outputs, upstream
from manualgrad.conformance.diagnosis import GRADIENT_LINE, expect_equal, first_difference
from manualgrad.conformance.graph import Watch, refused_shape
from manualgrad.conformance.refusal import refused
from manualgrad.conformance.result import Failed, NotApplicable
from manualgrad.dry_run import in_brief


def output(case: Case) -> str:
    """The reference's outputs: values, shapes and dtypes."""
    actual = outputs(case.layer, case.leaves())
    expected = outputs(case.reference, case.leaves())
    line = "print(layer(*inputs), reference(*inputs))"
    expect_equal(output_names(len(expected)), actual, expected, case.exact_outputs, line=line)
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
    first = case.values[0]
    if isinstance(first, Tensor) and first.dim() > 1 and first.size(0) > 1 and _agree(case, names, _first_row):
        return "; right for a batch of one: a sum over the batch is missing"
    if any(case.values[i].is_complex() for i in case.differentiable) and _agree(case, names, _real):
        return "; right for real numbers: a conjugate is missing"
    return ""


def _first_row(case: Case, leaves: list[Any]) -> list[Any]:
    size = leaves[0].size(0)
    return [
        x.detach()[:1].requires_grad_(x.requires_grad) if i < len(case.given) and _has_rows(x, size) else x
        for i, x in enumerate(leaves)
    ]


def _has_rows(x: Any, size: int) -> bool:
    return isinstance(x, Tensor) and x.dim() > 1 and x.size(0) == size


def _real(case: Case, leaves: list[Any]) -> list[Any]:
    return [
        torch.complex(x.detach().real, torch.zeros_like(x.real)).requires_grad_(x.requires_grad)
        if isinstance(x, Tensor) and x.is_complex()
        else x
        for x in leaves
    ]


def _agree(case: Case, names: Sequence[str], simplify: Any) -> bool:
    both = []
    try:
        for function in (case.layer, case.reference):
            leaves = simplify(case, case.leaves())
            results = outputs(function, leaves)
            sent = [torch.ones_like(x) for x in results if x.requires_grad]
            both.append(gradients(results, leaves, sent))
    except Exception:
        return False
    return first_difference(names, both[0], both[1]) is None


def frozen_inputs(case: Case) -> str:
    """Every subset of requires_grad: frozen tensors get no gradient, and none is computed for them."""
    k = len(case.differentiable)
    sizes = range(1, k + 1) if k <= 4 else (1, k - 1)
    subsets = [subset for size in sizes for subset in combinations(case.differentiable, size)]
    everything = case.leaves()
    full = dict(zip(case.differentiable, gradients_of(case.reference, everything), strict=True))
    for subset in subsets:
        names = [case.names[i] for i in subset]
        others = [k for k, i in enumerate(case.differentiable) if i not in subset]
        freeze = (
            f"[wanted[i].requires_grad_(False) for i in {others}]; wanted = [x for x in wanted if x.requires_grad]; "
        )
        line = freeze + _BOTH
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


_BOTH = "print(*(torch.autograd.grad(f(*inputs).abs().square().sum(), wanted) for f in (layer, reference)), sep='\\n')"
_COMPUTED = (
    "y = layer(*inputs); y.grad_fn.register_hook(lambda found, _: print([g is not None for g in found])); "
    "torch.autograd.backward(y.abs().sum())"
)


def gradcheck(case: Case) -> str:
    """First derivatives against finite differences, in float64."""
    try:
        finite_differences(
            _flat(case), case.wide(), fast_mode=_is_large(case), check_batched_grad=False, check_undefined_grad=True
        )
    except Exception as error:
        _unless_reference_fails(case, finite_differences)
        raise Failed(in_brief(error), "torch.autograd.gradcheck(layer, inputs)") from error
    return "finite differences in float64"


def gradgradcheck(case: Case) -> str:
    """Second derivatives against the reference's and finite differences, in float64."""
    line = "torch.autograd.gradgradcheck(layer, inputs)"
    try:
        expected = _second(case, case.reference)
    except RuntimeError as error:
        raise NotApplicable("nor by the reference") from error
    try:
        actual = _second(case, case.layer)
    except RuntimeError as error:
        raise refused(error, line, "no second derivative") from error
    names = [f"the second derivative by {case.names[i]}" for i in case.differentiable]
    constant = (
        "" if any(x.any() for x in actual) else ". If backward cannot be differentiated: @once_differentiable says so"
    )
    exact = lambda: _second(case, case.reference)  # noqa: E731
    expect_equal(names, actual, expected, exact, line=line, tolerance=1e-9, note=constant)
    try:
        # Along one random direction: entry by entry would take longer than all other checks, and the entries were just compared.
        second_finite_differences(_flat(case), case.wide(), fast_mode=True)
    except Exception as error:
        _unless_reference_fails(case, second_finite_differences)
        raise Failed(f"the second derivative is wrong: {in_brief(error)}", line) from error
    return "finite differences in float64"


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
    drawn = {
        i: torch.randn(case.values[i].shape, generator=generator, dtype=torch.complex128) for i in case.differentiable
    }

    def leaves() -> list[Any]:
        return [drawn[i].clone().requires_grad_() if i in drawn else x for i, x in enumerate(case.leaves())]

    try:
        expected = gradients_of(case.reference, leaves())
    except Exception as error:
        raise NotApplicable("nor by the reference") from error
    given = [drawn.get(i, x) for i, x in enumerate(case.given)]
    try:
        actual = gradients_of(case.layer, leaves())
    except Exception as error:
        raise refused(error, GRADIENT_LINE, inputs=given) from error
    names = case.gradient_names("for complex numbers, ")
    note = "; right for real numbers: a conjugate is missing. Add it, or raise in forward for complex inputs"
    exact = lambda: gradients_of(case.reference, leaves())  # noqa: E731
    expect_equal(names, actual, expected, exact, line=GRADIENT_LINE, note=note, inputs=given)
    return "complex inputs, as the reference's"


def _flat(case: Case) -> Any:
    def function(*arguments: Any) -> Any:
        results = tuple(x for x in outputs(case.layer, arguments) if x.requires_grad)
        return results if len(results) > 1 else results[0]

    return function


def _is_large(case: Case) -> bool:
    return sum(case.values[i].numel() for i in case.differentiable) > 300


def _unless_reference_fails(case: Case, check: Any) -> None:
    """Raises NotApplicable if the function itself is not smooth at this point: finite differences then show nothing."""
    try:
        check(lambda *arguments: tuple(x for x in outputs(case.reference, arguments) if x.requires_grad), case.wide())
    except Exception as error:
        raise NotApplicable(f"nor by the reference: {in_brief(error)}") from error
