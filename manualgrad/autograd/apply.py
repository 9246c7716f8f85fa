"""How the package's autograd Functions are applied: with their forward derivative only where forward mode is at work."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from manualgrad.autograd.torch_state import (
    are_transforms_active,
    forward_modes,
    is_exporting,
    is_forward_mode_active,
    tracing_state,
)


_INHERITED = Tensor.__torch_function__.__func__  # type: ignore[attr-defined]  # of subclasses without rules of their own


def call(function: type[Function], with_tangent: type[Function], *arguments: Any) -> Any:
    """`function.apply(*arguments)`; with a `jvp`, which `torch.compile` refuses, where forward mode is at work.

    For `torch.export` the forward pass alone: a graph of plain operations, which others can read.
    """
    if torch.compiler.is_compiling():
        if is_exporting():
            return function.forward(*arguments)
        return function.apply(*arguments)
    if is_forward_mode_active():
        return with_tangent.apply(*arguments)
    return super(Function, function).apply(*arguments)  # type: ignore[misc]  # see plain_apply


def plain_apply(function: type[Function]) -> Callable[..., Any]:
    """What `function.apply` comes to when no transform is active, without its inspection of the signature, which takes longer
    than a small layer."""
    return super(Function, function).apply  # type: ignore[misc]


def is_plain_mode() -> bool:
    """Whether nothing but reverse mode is at work: no forward mode, transform, compilation or `torch.jit.trace`."""
    return not (torch.compiler.is_compiling() or is_forward_mode_active() or tracing_state() is not None)


def is_left_to_autograd(*tensors: Any) -> bool:
    """Whether PyTorch's own operations must stand here, since a function with its own derivatives would not do.

    Tensors that have rules of their own for those operations are given to them: nested and sparse ones, and subclasses with a
    `__torch_function__` (weights expanded for per-sample gradients, or quantized).

    `torch.jit.trace`, and with it the older ONNX exporter, records only operations that it can name. Forward mode inside
    forward mode (`torch.func.jacfwd(jacfwd(f))`) loses the outer tangent in any `jvp` without a word; and `torch.compile`
    refuses a `jvp`, so that transforms inside a compiled function would not find one.
    """
    if tracing_state() is not None:
        return True
    for x in tensors:
        if type(x) is Tensor or type(x) is nn.Parameter:
            if x.layout is not torch.strided or x.is_nested:
                return True
        elif x is not None and _has_rules_of_its_own(x):
            return True
    if not are_transforms_active():
        return False
    return torch.compiler.is_compiling() or forward_modes() > 1


def _has_rules_of_its_own(x: Any) -> bool:
    own = getattr(type(x), "__torch_function__", torch._C._disabled_torch_function_impl)
    return own is not torch._C._disabled_torch_function_impl and getattr(own, "__func__", own) is not _INHERITED
