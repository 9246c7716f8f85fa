"""What PyTorch's forward-mode differentiation cannot do with a function that has its own `jvp`."""

from __future__ import annotations

import torch
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters


def is_beyond_jvp() -> bool:
    """Whether autograd must differentiate here, because a `jvp` written by hand would not be used or not be right.

    Forward mode inside forward mode (`torch.func.jacfwd(jacfwd(f))`) loses the outer tangent in any `jvp` and says nothing;
    and `torch.compile` refuses a `jvp`, so that transforms inside of a compiled function would not find one.
    """
    if not torch._C._are_functorch_transforms_active():
        return False
    if torch.compiler.is_compiling():
        return True
    return sum(level.key() == TransformType.Jvp for level in retrieve_all_functorch_interpreters()) > 1
