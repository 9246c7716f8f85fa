"""check_backward: everything that a hand-written backward pass has to get right, tried out."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manualgrad.conformance.case import Case
from manualgrad.conformance.checks import copies, derivatives, execution, layouts, memory, surroundings, transforms
from manualgrad.conformance.diagnosis import GRADIENT_LINE
from manualgrad.conformance.result import Check, Conformance, Failed, NotApplicable, NotSupported, in_brief


CHECKS: dict[str, Callable[[Case], str]] = {
    "output": derivatives.output,
    "gradient": derivatives.gradient,
    "frozen inputs": derivatives.frozen_inputs,
    "gradcheck": derivatives.gradcheck,
    "gradgradcheck": derivatives.gradgradcheck,
    "complex": derivatives.complex_numbers,
    "non-contiguous": layouts.non_contiguous,
    "expanded": layouts.expanded,
    "upstream layout": layouts.upstream_layouts,
    "batch of one": layouts.batch_of_one,
    "empty batch": layouts.empty_batch,
    "more axes": layouts.more_axes,
    "fewer axes": layouts.fewer_axes,
    "in place": memory.in_place,
    "memory leak": memory.leak,
    "saved tensors": memory.saved,
    "determinism": memory.determinism,
    "no_grad": surroundings.without_gradients,
    "surroundings": surroundings.surroundings,
    "autocast": execution.autocast,
    "torch.compile": execution.compiled,
    "vmap": transforms.vmap,
    "jvp": transforms.jvp,
    "copies": copies.copies,
    "cuda": execution.cuda,
}


def check_backward(layer: Any, reference: Any, *inputs: Any, skip: Collection[str] = ()) -> Conformance:
    """Prove a backward pass that was written by hand, with everything that PyTorch may do to it.

        report = mg.check_backward(MyFunction, torch.nn.functional.linear, x, weight, bias)
        print(report)
        report.assert_ok()

    Compared are outputs, gradients and second derivatives, with the reference's, a float64 truth and finite differences;
    for every subset of what may require a gradient; for inputs that are non-contiguous, expanded, empty, of more or
    fewer axes, complex; then what is changed in place, leaked and saved, under no_grad and around it;
    autocast, torch.compile, vmap, jvp, copies, CUDA.

    Where the reference works and the layer raises, that is a failure, unless the layer refuses clearly: an error raised by
    its own forward pass, or PyTorch's sentence about what it lacks (a `jvp`, a vmap rule, a second derivative). Such a row
    is "not supported" and passes `assert_ok()`; `assert_ok(require=("vmap",))` or `assert_ok(strict=True)` demand more.

    Works on copies: inputs, modules and random states are left as they were. It takes a few seconds, most of them in
    torch.compile, and is quickest with inputs of a few dozen numbers. Unequal sizes find more: a missing transpose shows
    in a square weight only in the numbers.

    Args:
        layer: a function of tensors, a module, or a subclass of `torch.autograd.Function`. Returns a tensor or several.
        reference: the same computation, differentiated by autograd. For a module with parameters: a module with the same
            parameters (the layer's values are used), or a function of (*inputs, *parameters).
        inputs: what both are called with. Floating point and complex tensors are differentiated; others are passed on.
        skip: names of checks to leave out, for example ("torch.compile",).

    Returns:
        A `Conformance`. Each row has passed, failed (and says how to see it), is not supported (the layer refuses what the
        reference does), or not applicable (the reference does not do it either).

    Raises:
        TypeError: the layer or the reference cannot be called.
        ValueError: nothing to differentiate; parameters that do not correspond; an unknown name in `skip`; a reference
            that fails on these inputs.
    """
    unknown = set(skip) - CHECKS.keys()
    if unknown:
        raise ValueError(
            f"check_backward expected `skip` to name checks, got {sorted(unknown)}. The checks are: {', '.join(CHECKS)}."
        )
    state = torch.random.get_rng_state()
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad():
            warnings.simplefilter("ignore")  # PyTorch's own, on what we provoke
            case = Case(layer, reference, inputs)
            _expect_reference_works(case)
            return Conformance(_run(name, check, case) for name, check in CHECKS.items() if name not in skip)
    finally:
        torch.random.set_rng_state(state)


def _run(name: str, check: Callable[[Case], str], case: Case) -> Check:
    settings = surroundings.settings()
    try:
        return Check(name, "passed", check(case))
    except NotSupported as refusal:
        return Check(name, "not supported", str(refusal))
    except NotApplicable as reason:
        return Check(name, "not applicable", str(reason))
    except Failed as failure:
        first = _first_line(case, name, case.given if failure.inputs is None else failure.inputs)
        return Check(name, "failed", str(failure), f"{first}\n{failure.line}", _in_full(failure.__cause__))
    except Exception as error:
        first = _first_line(case, name, case.given)
        return Check(name, "failed", in_brief(error), f"{first}\n{GRADIENT_LINE}", _in_full(error))
    finally:
        surroundings.restore(settings)  # what the layer changes must not hide from the next check


def _in_full(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}" if error is not None else ""


def _expect_reference_works(case: Case) -> None:
    try:
        derivatives._gradients(case.reference, case.leaves())
    except Exception as error:
        raise ValueError(
            f"check_backward expected a reference that can be differentiated on these inputs, got {type(error).__name__}: {error}. "
            "Call it as reference(*inputs), or reference(*inputs, *parameters) for a module, until that works."
        ) from error


def _first_line(case: Case, check: str, given: Sequence[Any]) -> str:
    """Python that makes inputs like those given, and the tensors by which is differentiated."""
    inputs, has_parameters = ", ".join(_like(x) for x in given), isinstance(case.original, nn.Module)
    bound = "reference = lambda *x, f=reference: f(*x, *layer.parameters()); " if case.takes_parameters else ""
    if check in ("gradcheck", "gradgradcheck", "jvp"):
        inputs = re.sub(r"torch\.(b?float16|float32)", "torch.float64", inputs)
        bound += "layer = __import__('copy').deepcopy(layer).double(); " if has_parameters else ""
    elif check == "complex" and has_parameters:
        bound += "layer = __import__('copy').deepcopy(layer).to(torch.complex128); "
    wanted = "(x for x in inputs if getattr(x, 'requires_grad', False))" + ", *layer.parameters()" * has_parameters
    return f"{bound}inputs = [{inputs}]; wanted = [*{wanted}]{_JOINED if _returns_several(case) else ''}"


_JOINED = (
    "; layer, reference = (lambda *x, f=f: torch.cat([y.flatten() for y in torch.utils._pytree.tree_leaves(f(*x)) "
    "if y.requires_grad]) for f in (layer, reference))"
)


def _returns_several(case: Case) -> bool:
    return not isinstance(case.reference(*case.leaves()), Tensor)


def _like(x: Any) -> str:
    if not isinstance(x, Tensor):
        return repr(x)
    if x.is_floating_point() or x.is_complex():
        positive = x.is_floating_point() and x.numel() and bool((x >= 0).all())
        return f"torch.{'rand' if positive else 'randn'}({tuple(x.shape)}, dtype={x.dtype}, requires_grad=True)"
    low, high = (int(x.min()), int(x.max()) + 1) if x.numel() else (0, 1)
    return f"torch.randint({low}, {high}, {tuple(x.shape)}).to({x.dtype})"
