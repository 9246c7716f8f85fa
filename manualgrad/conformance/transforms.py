"""Checks of what PyTorch may do with a layer: autocast, compile, vmap, jvp, copy, another device."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from torch import Tensor, nn

from manualgrad.conformance.case import Case, gradients, is_differentiable, outputs
from manualgrad.conformance.diagnosis import expect_equal
from manualgrad.conformance.result import Failed, NotSupported, in_brief


def autocast(case: Case) -> str:
    """Under autocast to bfloat16: an output of at least the reference's precision, gradients in the leaves' dtype."""
    if any(case.values[i].is_complex() for i in case.differentiable):
        raise NotSupported("complex inputs")
    both: list[list[Tensor]] = []
    for function in (case.reference, case.layer):
        leaves = case.leaves(torch.float32)
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                results = outputs(function, leaves)
            found = gradients(results, leaves)
        except Exception as error:
            if function is case.reference:
                raise NotSupported("nor by the reference") from error
            raise NotSupported(in_brief(error)) from error
        both.append([*(x.detach() for x in results), *found])
    leaves = case.wide()
    results = outputs(case.reference, leaves)
    expected, actual = both
    wider = ""
    for name, a, e in zip(_names(case, len(results)), actual, expected, strict=True):
        if a.dtype != e.dtype:
            wider = f"{name} is {a.dtype}, the reference's is {e.dtype}"
            if torch.promote_types(a.dtype, e.dtype) != a.dtype:
                raise Failed(wider, _AUTOCAST)
    actual = [a.to(e.dtype) for a, e in zip(actual, expected, strict=True)]
    truth = [*(x.detach() for x in results), *gradients(results, leaves)]
    expect_equal(_names(case, len(results)), actual, expected, truth, line=_AUTOCAST, tolerance=5e-2)
    return wider or "bfloat16, dtypes as the reference's"


_AUTOCAST = "with torch.autocast('cpu', dtype=torch.bfloat16): print([f(*inputs).dtype for f in (layer, reference)])"


def compiled(case: Case) -> str:
    """torch.compile of forward and backward without a graph break (backend aot_eager: what is traced, not how fast)."""

    def call(*arguments: Any) -> Any:
        return case.layer(*arguments)

    call.__code__ = call.__code__.replace()  # compiled code is kept with it, and must not be that of the last check
    leaves = case.leaves()
    try:
        results = outputs(torch.compile(call, fullgraph=True, backend="aot_eager"), leaves)
        found = gradients(results, leaves)
    except Exception as error:
        raise NotSupported(in_brief(error)) from error
    plain = case.leaves()
    expected = outputs(case.layer, plain)
    line = (
        "for f in (layer, torch.compile(layer, fullgraph=True)): print(torch.autograd.grad(f(*inputs).sum(), wanted))"
    )
    if any(x.requires_grad != y.requires_grad for x, y in zip(results, expected, strict=True)):
        raise Failed("the compiled output requires a gradient where the eager one does not, or the reverse", line)
    names = [f"compiled, {name}" for name in _names(case, len(results))]
    expect_equal(names, [*results, *found], [*expected, *gradients(expected, plain)], line=line, tolerance=1e-5)
    return "no graph break"


def vmap(case: Case) -> str:
    """torch.func.vmap over samples, of outputs and gradients, against a loop."""
    inputs = range(len(case.given))
    axes = tuple(0 if i in inputs and isinstance(x, Tensor) else None for i, x in enumerate(case.values))
    if all(axis is None for axis in axes):
        raise NotSupported("no tensor among the inputs")
    stacked = [
        x if axis is None else torch.stack([x, 0.5 * x]) if is_differentiable(x) else torch.stack([x, x])
        for x, axis in zip([y.detach() if isinstance(y, Tensor) else y for y in case.values], axes, strict=True)
    ]

    def batched(function: Any) -> list[Tensor]:
        def one(*arguments: Any) -> list[Tensor]:
            def of_differentiable(*values: Tensor) -> list[Tensor]:
                filled = list(arguments)
                for i, value in zip(case.differentiable, values, strict=True):
                    filled[i] = value
                return [x for x in _call(function, filled) if is_differentiable(x)]

            results, pull, *_ = torch.func.vjp(of_differentiable, *(arguments[i] for i in case.differentiable))
            return [*results, *pull([torch.ones_like(x) for x in results])]

        torch.manual_seed(0)
        return list(torch.func.vmap(one, axes, randomness="same")(*stacked))

    try:
        expected = batched(case.reference)
    except Exception as error:
        raise NotSupported("nor by the reference") from error
    try:
        actual = batched(case.layer)
    except Exception as error:
        raise NotSupported(in_brief(error)) from error
    names = [f"mapped, tensor {i}" for i in range(len(expected))]
    expect_equal(
        names,
        actual,
        expected,
        line=f"torch.func.vmap(layer, {axes[: len(case.given)]})(*[torch.stack([x, x]) for x in inputs])",
    )
    return "outputs and per-sample gradients"


def jvp(case: Case) -> str:
    """torch.func.jvp, forward-mode differentiation, against the reference's."""
    generator = torch.Generator().manual_seed(3)
    fixed = case.wide(which=())
    primals = tuple(fixed[i] for i in case.differentiable)
    tangents = tuple(torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in primals)

    def forwards(function: Any) -> list[Tensor]:
        def of_differentiable(*values: Tensor) -> list[Tensor]:
            filled = list(fixed)
            for i, value in zip(case.differentiable, values, strict=True):
                filled[i] = value
            return [x for x in _call(function, filled) if is_differentiable(x)]

        torch.manual_seed(0)
        return list(torch.func.jvp(of_differentiable, primals, tangents)[1])

    try:
        expected = forwards(case.reference)
    except Exception as error:
        raise NotSupported("nor by the reference") from error
    try:
        actual = forwards(case.layer)
    except Exception as error:
        raise NotSupported(in_brief(error)) from error
    names = [f"the tangent of output {i}" for i in range(len(expected))]
    line = (
        "for f in (layer, reference): print(torch.func.jvp(f, tuple(inputs), tuple(map(torch.ones_like, inputs)))[1])"
    )
    expect_equal(names, actual, expected, line=line)
    return "forward mode"


def copies(case: Case) -> str:
    """deepcopy and pickle of a module."""
    layer = case.original
    if not isinstance(layer, nn.Module):
        raise NotSupported("not a module")
    expected = outputs(case.layer, case.leaves())
    for name, made in (("deepcopy", copy.deepcopy), ("pickle", lambda module: pickle.loads(pickle.dumps(module)))):
        try:
            twin = made(layer)
        except Exception as error:
            if name == "pickle" and "local object" in str(error):
                raise NotSupported(in_brief(error)) from error
            raise Failed(f"{name}: {in_brief(error)}", f"import copy, pickle; {_COPIES[name]}") from error
        case_of_twin = Case(twin, case.reference.subject, case.given)
        expect_equal(
            [f"the {name}'s output"] * len(expected),
            outputs(case_of_twin.layer, case_of_twin.leaves()),
            expected,
            line=f"import copy, pickle; {_COPIES[name]}",
        )
    return "deepcopy, pickle"


_COPIES = {
    "deepcopy": "print(copy.deepcopy(layer)(*inputs) - layer(*inputs))",
    "pickle": "print(pickle.loads(pickle.dumps(layer))(*inputs) - layer(*inputs))",
}


def cuda(case: Case) -> str:
    """The same gradients on a GPU."""
    if not torch.cuda.is_available():
        raise NotSupported("no CUDA device here")
    both = []
    for function in (case.layer, case.reference):
        leaves = [x.detach().cuda() if isinstance(x, Tensor) else x for x in case.wide()]
        leaves = [x.requires_grad_() if is_differentiable(x) else x for x in leaves]
        subject = function.subject
        if isinstance(subject, nn.Module):
            function = copy.copy(function)
            function.subject = copy.deepcopy(subject).cuda()
        results = outputs(function, leaves)
        both.append([*results, *gradients(results, leaves)])
    expect_equal(
        _names(case, len(both[0]) - len(case.differentiable)),
        *both,
        line="print(layer(*[x.cuda() for x in inputs]))",
        tolerance=1e-9,
    )
    return torch.cuda.get_device_name()


def _call(function: Any, arguments: list[Any]) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(function(*arguments)) if isinstance(x, Tensor)]


def _names(case: Case, results: int) -> list[str]:
    named = ["the output"] if results == 1 else [f"output[{i}]" for i in range(results)]
    return named + [f"the gradient by {case.names[i]}" for i in case.differentiable]
