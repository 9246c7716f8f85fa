"""Checks of other ways to run a layer: under autocast, compiled, on a GPU."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from manualgrad.conformance.case import AsFunction, Case, gradients, is_differentiable, outputs, outputs_and_gradients
from manualgrad.conformance.diagnosis import expect_equal
from manualgrad.conformance.refusal import of_both, refused
from manualgrad.conformance.result import Failed, NotApplicable


def autocast(case: Case) -> str:
    """Under autocast to bfloat16: an output of at least the reference's precision, gradients in the leaves' dtype."""
    if any(case.values[i].is_complex() for i in case.differentiable):
        raise NotApplicable("complex inputs")
    actual, expected = of_both(lambda function: _autocast(case, function), case, _AUTOCAST)
    names = case.result_names(actual)
    wider = ""
    for name, a, e in zip(names, actual, expected, strict=True):
        if a.dtype != e.dtype:
            wider = f"{name} is {a.dtype}, the reference's is {e.dtype}"
            if torch.promote_types(a.dtype, e.dtype) != a.dtype:
                raise Failed(wider, _AUTOCAST)
    actual = [a.to(e.dtype) for a, e in zip(actual, expected, strict=True)]
    expect_equal(names, actual, expected, case.exact, line=_AUTOCAST, tolerance=5e-2)
    return wider or "bfloat16, dtypes as the reference's"


def _autocast(case: Case, function: AsFunction) -> list[Tensor]:
    """Outputs and gradients; the backward pass runs outside, as PyTorch advises."""
    leaves = case.leaves(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = outputs(function, leaves)
    return [*(x.detach() for x in results), *gradients(results, leaves)]


_AUTOCAST = (
    "for f in (layer, reference): y = torch.autocast('cpu', dtype=torch.bfloat16)(f)(*inputs); "
    "print(y, torch.autograd.grad(y.float().square().sum(), wanted))"
)


def compiled(case: Case) -> str:
    """torch.compile of forward and backward without a graph break (backend aot_eager: what is traced, not how fast)."""
    leaves = case.leaves()
    try:
        results = outputs(_compiled(case.layer), leaves)
        found = gradients(results, leaves)
    except Exception as error:
        leaves = case.leaves()
        try:
            gradients(outputs(_compiled(case.reference), leaves), leaves)
        except Exception as theirs:
            raise NotApplicable("nor by the reference") from theirs
        raise refused(error, _COMPILED) from error
    plain = case.leaves()
    expected = outputs(case.layer, plain)
    if any(x.requires_grad != y.requires_grad for x, y in zip(results, expected, strict=True)):
        raise Failed("the compiled output requires a gradient where the eager one does not, or the reverse", _COMPILED)
    compiled, eager = [*results, *found], [*expected, *gradients(expected, plain)]
    names = case.result_names(compiled, "compiled, ")
    expect_equal(names, compiled, eager, case.exact, line=_COMPILED, tolerance=1e-5)
    return "no graph break"


def _compiled(function: AsFunction) -> Any:
    def call(*arguments: Any) -> Any:
        return function(*arguments)

    call.__code__ = call.__code__.replace()  # compiled code is kept with it, and must not be that of the last check
    return torch.compile(call, fullgraph=True, backend="aot_eager")


_COMPILED = (
    "for f in (layer, torch.compile(layer, fullgraph=True, backend='aot_eager')): "
    "print(torch.autograd.grad(f(*inputs).abs().square().sum(), wanted))"
)


def cuda(case: Case) -> str:
    """The same gradients on a GPU."""
    if not torch.cuda.is_available():
        raise NotApplicable("no CUDA device here")
    both = []
    for function in (case.layer, case.reference):
        leaves = [x.detach().cuda() if isinstance(x, Tensor) else x for x in case.wide()]
        leaves = [x.requires_grad_() if is_differentiable(x) else x for x in leaves]
        if isinstance(function.subject, nn.Module):
            moved = copy.deepcopy(function.subject).cuda()
            function = AsFunction(moved, function.inputs, function.parameters)
        both.append(outputs_and_gradients(function, leaves))
    names, line = case.result_names(both[0]), "print(layer(*[x.cuda() for x in inputs]))"
    expect_equal(names, both[0], both[1], line=line, tolerance=1e-9)
    return torch.cuda.get_device_name()
