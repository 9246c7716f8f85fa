"""Tell a layer that refuses a feature from one that breaks under it.

A refusal is deliberate: PyTorch's own sentence about what an `autograd.Function` lacks, a graph break, a dtype without a
kernel, or a `raise` or `assert` in the layer's forward pass. Any other error is a failure if the reference works.
"""

import dis
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from manualgrad.conformance.case import AsFunction, Case, run_on
from manualgrad.conformance.diagnosis import GRADIENT_LINE, expect_equal
from manualgrad.conformance.result import Failed, NotApplicable, NotSupported
from manualgrad.dry_run import in_brief


_SAID_BY_PYTORCH = re.compile(
    r"must override the setup_context staticmethod"
    r"|does not have vmap support"
    r"|^vmap: |Batching rule not implemented|Cannot access data pointer of Tensor"
    r"|marked with @once_differentiable"
    r"|is not supported for complex types"
)
_GRAPH_BREAKS = ("Unsupported", "UncapturedHigherOrderOpError")
_TORCH = str(Path(torch.__file__).parent)


def is_refusal(error: BaseException) -> bool:
    """Whether the layer, or PyTorch on its behalf, refuses on purpose, so that nothing wrong is computed."""
    if isinstance(error, NotImplementedError):
        return True
    if type(error).__name__ in _GRAPH_BREAKS:  # since torch 2.14 also around an operation that fails as it is traced
        return "failed to run FX node with fake tensors" not in str(error)
    return bool(_SAID_BY_PYTORCH.search(str(error))) or _is_raised_going_forwards(error.__traceback__)


def refused(error: Exception, line: str, where: str = "", inputs: Sequence[Any] | None = None) -> Failed | NotSupported:
    """The exception for a check in which the layer raised `error` and the reference works."""
    sentence = f"{where}: {in_brief(error)}" if where else in_brief(error)
    if is_refusal(error):
        return NotSupported(sentence)
    return Failed(
        f"{sentence}; the reference works. Support it, or raise an error in forward that says it is not supported.",
        line,
        inputs,
    )


def of_both(
    run: Callable[[AsFunction], list[Tensor]],
    case: Case,
    line: str,
    where: str = "",
    inputs: Sequence[Any] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """What `run` finds of the layer and of the reference.

    Raises NotApplicable where the reference fails, and what `refused` makes of the error where the layer alone does."""
    try:
        expected = run(case.reference)
    except Exception as error:
        raise NotApplicable("nor by the reference") from error
    try:
        return run(case.layer), expected
    except Exception as error:
        raise refused(error, line, where, inputs) from error


def expect_equal_on(case: Case, values: list[Any], where: str) -> None:
    """Compare outputs and gradients for these values, in place of the case's own. Raises as `of_both`, and Failed."""
    given = values[: len(case.given)]
    actual, expected = of_both(lambda function: run_on(function, values), case, GRADIENT_LINE, where, given)
    exact = lambda: run_on(case.reference, values, wide=True)  # noqa: E731
    names = case.result_names(expected, f"{where}, ")
    expect_equal(names, actual, expected, exact, line=GRADIENT_LINE, inputs=given)


def _is_raised_going_forwards(trace: TracebackType | None) -> bool:
    """Whether a `raise` or `assert` outside of PyTorch made the error. In a backward pass it comes too late to count."""
    names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(trace)}
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or "backward" in names or trace.tb_frame.f_code.co_filename.startswith(_TORCH):
        return False
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
