"""What `torch.autocast` means for a layer that chooses its own dtypes."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from manualgrad.autograd.torch_state import is_any_autocast_enabled


def is_autocasting(x: Tensor) -> bool:
    """Whether autocast is on where this tensor is; on the meta device, which has none, asking PyTorch would raise."""
    if not is_any_autocast_enabled():
        return False
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def is_castable(x: Tensor) -> bool:
    """Whether autocast lowers this tensor's precision: it leaves float64, complex and integers alone."""
    return x.is_floating_point() and x.dtype != torch.float64


def without_autocast(x: Tensor) -> AbstractContextManager:
    """The layer has chosen its dtypes; autocast, where it is on, must not choose again inside."""
    return torch.autocast(x.device.type, enabled=False) if is_autocasting(x) else nullcontext()
