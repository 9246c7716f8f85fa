"""What `torch.autocast` means for a layer that chooses its own dtypes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def is_autocasting(device_type: str) -> bool:
    """Whether autocast is on; on the meta device, which has none, asking PyTorch would raise."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def is_castable(x: Tensor) -> bool:
    """Whether autocast lowers this tensor's precision: it leaves float64, complex and integers alone."""
    return x.is_floating_point() and x.dtype != torch.float64


def without_autocast(device_type: str) -> AbstractContextManager:
    """The layer has chosen its dtypes; autocast, where it is on, must not choose again inside."""
    return torch.autocast(device_type, enabled=False) if is_autocasting(device_type) else nullcontext()
