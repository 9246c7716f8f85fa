"""How the package's autograd Functions are called: with their forward derivative only where forward mode is at work."""

from __future__ import annotations

from typing import Any

import torch
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import Function, forward_ad


def call(function: type[Function], with_tangent: type[Function], *arguments: Any) -> Any:
    """`function.apply(*arguments)`; with a `jvp`, which `torch.compile` refuses, where forward mode is at work.

    For `torch.export` the forward pass alone: a graph of plain operations, which others can read.
    """
    if torch.compiler.is_compiling():
        if torch.compiler.is_exporting():
            return function.forward(*arguments)
        return function.apply(*arguments)
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return with_tangent.apply(*arguments)
    # What `apply` comes to when no transform is active, without its inspection of the signature, which takes longer than a
    # small layer.
    return super(Function, function).apply(*arguments)  # type: ignore[misc]


def is_left_to_autograd() -> bool:
    """Whether PyTorch's own operations must stand here, since a function with its own derivatives would not do.

    `torch.jit.trace`, and with it the older ONNX exporter, takes down what it can name. Forward mode inside forward mode
    (`torch.func.jacfwd(jacfwd(f))`) loses the outer tangent in any `jvp` and says nothing; and `torch.compile` refuses a
    `jvp`, so that transforms inside of a compiled function would not find one.
    """
    if torch._C._get_tracing_state() is not None:
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    if torch.compiler.is_compiling():
        return True
    return sum(level.key() == TransformType.Jvp for level in retrieve_all_functorch_interpreters()) > 1
