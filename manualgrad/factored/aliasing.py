"""Factors that share memory with what is about to be written are copied first: nobody reads what an update has overwritten.

The factors of a gradient are the layer's own tensors, and those may be anything: a part of a weight, of another parameter, of
a momentum buffer. A dense gradient would hold numbers of its own. So before any optimizer's step, and before a gradient is
added to a tensor, the memory is compared; where it overlaps, r (m + n) numbers are copied.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from manualgrad.autograd.torch_state import before_every_step
from manualgrad.factored.factors import Content, living


def copy_before_writing(written: Iterable[Any]) -> None:
    """Copy the factors of every gradient that share memory with one of the tensors; other arguments are ignored.

    Factors that were changed in place before stay as they are: their use raises.
    """
    if not living:
        return
    spans = sorted(span for x in written if (span := _span(x)))
    starts, ends = [start for start, _ in spans], list(accumulate((end for _, end in spans), max))

    def is_written(x: Tensor) -> bool:
        start, end = _span(x) or (0, 0)
        i = bisect_left(starts, end)
        return i > 0 and ends[i - 1] > start

    for reference in living.valuerefs():
        content = reference()
        if content is not None and any(is_written(x) for f in content.factors for x in (f.delta, f.a)):
            _copy(content)


def copy_before_writing_to(target: Tensor, content: Content) -> None:
    """The same for one tensor and the factors of one gradient, when that is about to be added to it."""
    start, end = _span(target) or (0, 0)
    for factors in content.factors:
        for x in (factors.delta, factors.a):
            x_start, x_end = _span(x) or (0, 0)
            if x_start < end and start < x_end:
                _copy(content)
                return


def _copy(content: Content) -> None:
    content.factors = tuple(f if f.is_changed() else f.mapped(Tensor.clone, "copying it") for f in content.factors)


def _span(x: Any) -> tuple[int, int] | None:
    """The addresses between which a tensor's memory lies; None for what has none of its own, or is no tensor."""
    if type(x) is not Tensor and type(x) is not nn.Parameter:
        if not isinstance(x, Tensor) or type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            return None
    if x.layout != torch.strided or x.device.type == "meta":
        return None
    if x.is_contiguous():
        start = x.data_ptr()
        return start, start + x.nbytes
    storage = x.untyped_storage()
    start = storage.data_ptr()
    return start, start + storage.nbytes()


def _before_step(optimizer: Optimizer, arguments: tuple, keywords: dict[str, Any]) -> Any:
    """Check the factors of all gradients before anything changes, and copy those that the step would overwrite.

    A closure makes the gradients inside the step: then it is done after the closure.
    """
    if torch.compiler.is_compiling():
        return None
    closure = keywords.get("closure", arguments[1] if len(arguments) > 1 else None)
    if not callable(closure):
        _prepare(optimizer)
        return None

    def closure_and_check() -> Any:
        loss = closure()
        _prepare(optimizer)
        return loss

    if "closure" in keywords:
        return arguments, {**keywords, "closure": closure_and_check}
    return (arguments[0], closure_and_check, *arguments[2:]), keywords


def _prepare(optimizer: Optimizer) -> None:
    if not living:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    for p in parameters:
        if (content := getattr(p.grad, "content", None)) is not None:
            content.check_versions(f"{type(optimizer).__name__}.step()")
    states = [x for p in parameters for x in optimizer.state.get(p, {}).values()]
    copy_before_writing([*parameters, *states])


before_every_step(_before_step)
