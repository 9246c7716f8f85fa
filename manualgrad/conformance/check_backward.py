"""check_backward: try a hand-written backward pass in every way in which PyTorch may call it."""

import logging
import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch

from manualgrad.conformance.case import Case, gradients_of
from manualgrad.conformance.checks import (
    copies,
    derivatives,
    execution,
    layouts,
    memory,
    other_inputs,
    surroundings,
    transforms,
)
from manualgrad.conformance.diagnosis import GRADIENT_LINE
from manualgrad.conformance.reproduction import first_line
from manualgrad.conformance.result import Check, Conformance, Failed, NotApplicable, NotSupported
from manualgrad.dry_run import in_brief


# What a layer may leave out if `only` says so, and the checks that it need not pass then.
CLAIMS = {"real": ("complex",), "2-d": ("more axes", "fewer axes"), "first order": ("gradgradcheck",)}

CHECKS: dict[str, Callable[[Case], str]] = {
    "output": derivatives.output,
    "gradient": derivatives.gradient,
    "frozen inputs": derivatives.frozen_inputs,
    "gradcheck": derivatives.gradcheck,
    "gradgradcheck": derivatives.gradgradcheck,
    "complex": derivatives.complex_numbers,
    "other inputs": other_inputs.other_inputs,
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


def check_backward(
    layer: Any, reference: Any, *inputs: Any, skip: Collection[str] = (), only: Collection[str] = ()
) -> Conformance:
    """Test a backward pass that was written by hand against a reference, in every way in which PyTorch may call it.

        report = mg.check_backward(MyFunction, torch.nn.functional.linear, x, weight, bias)
        print(report)
        report.assert_ok()

    Outputs, gradients and second derivatives are compared with the reference's, with a float64 truth and with finite
    differences: for every subset of requires_grad, and for inputs that are non-contiguous, expanded, empty, complex, or of
    more or fewer axes. Other checks look for what is changed in place, leaked or saved without need, and run the layer under
    no_grad, autocast, torch.compile, vmap and jvp, from a copy, and on CUDA.

    Where the reference works and the layer raises, that is a failure, unless the layer refuses clearly: an error raised by
    its own forward pass, or PyTorch's sentence about what it lacks (a `jvp`, a vmap rule, a second derivative). Such a row
    is "not supported" and passes `assert_ok()`; use `assert_ok(require=("vmap",))` or `assert_ok(strict=True)` to demand more.

    Works on copies: inputs, modules and random states are left as they were. It takes a few seconds, most of them in
    torch.compile, and is fastest with inputs of a few dozen numbers. Give every axis another size: the gradient by a square
    weight has the right shape even if a transpose is missing.

    Args:
        layer: a function of tensors, a module, or a subclass of `torch.autograd.Function`. Returns a tensor or several.
        reference: the same computation, differentiated by autograd. For a module with parameters: a module with the same
            parameters (the layer's values are used), or a function of (*inputs, *parameters).
        inputs: what both are called with. Floating point and complex tensors are differentiated; others are passed on.
        skip: names of checks to leave out, for example ("torch.compile",).
        only: what the layer is for, so that nothing else is asked of it: "real" (no complex numbers), "2-d" (no more and no
            fewer axes than given), "first order" (no second derivatives). These rows are "not applicable".

    Returns:
        A `Conformance`. Each row has passed, failed (and says how to see it), is not supported (the layer refuses what the
        reference does), or not applicable (the reference does not do it either).

    Raises:
        TypeError: the layer or the reference cannot be called.
        ValueError: nothing to differentiate; parameters that do not correspond; an unknown name in `skip` or `only`; a reference
            that fails on these inputs.
    """
    __tracebackhide__ = True  # in pytest the sentence comes first
    if unknown := set(skip) - CHECKS.keys():
        raise ValueError(
            f"check_backward expected `skip` to name checks, got {sorted(unknown)}. The checks are: {', '.join(CHECKS)}."
        )
    only = (only,) if isinstance(only, str) else only
    if unknown := set(only) - CLAIMS.keys():
        raise ValueError(
            f"check_backward expected `only` to say what the layer is for, got {sorted(unknown)}. Choose from: {', '.join(CLAIMS)}."
        )
    not_claimed = {check: claim for claim in only for check in CLAIMS[claim]}
    state = torch.random.get_rng_state()
    trace_log = logging.getLogger("torch.__trace")  # of torch.compile: pytest would print pages of it
    trace_log.addFilter(_nothing)
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad():
            warnings.simplefilter("ignore")  # PyTorch's own warnings about what the checks provoke
            case = Case(layer, reference, inputs)
            _expect_reference_works(case)
            return Conformance(
                Check(name, "not applicable", f"only={not_claimed[name]!r}")
                if name in not_claimed
                else _run(name, check, case)
                for name, check in CHECKS.items()
                if name not in skip
            )
    finally:
        torch.random.set_rng_state(state)
        trace_log.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def _run(name: str, check: Callable[[Case], str], case: Case) -> Check:
    settings = surroundings.settings()
    try:
        return Check(name, "passed", check(case))
    except NotSupported as refusal:
        return Check(name, "not supported", str(refusal))
    except NotApplicable as reason:
        return Check(name, "not applicable", str(reason))
    except Failed as failure:
        first = first_line(case, name, case.given if failure.inputs is None else failure.inputs)
        return Check(name, "failed", str(failure), f"{first}\n{failure.line}", _in_full(failure.__cause__))
    except Exception as error:
        first = first_line(case, name, case.given)
        return Check(name, "failed", in_brief(error), f"{first}\n{GRADIENT_LINE}", _in_full(error))
    finally:
        surroundings.restore(settings)  # the next check must see the same settings


def _in_full(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}" if error is not None else ""


def _expect_reference_works(case: Case) -> None:
    try:
        gradients_of(case.reference, case.leaves())
    except Exception as error:
        raise ValueError(
            f"check_backward expected a reference that can be differentiated on these inputs, got {type(error).__name__}: {error}. "
            "Call it as reference(*inputs), or reference(*inputs, *parameters) for a module, until that works."
        ) from error
