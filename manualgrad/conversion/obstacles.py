"""What `convert` looks at, and why it leaves some of it alone."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from manualgrad.activation.torch_twins import TWINS, torch_class
from manualgrad.layers.dense import Dense


def is_linear_like(module: nn.Module) -> bool:
    """Whether a reader of the model would call it a linear layer, so that a report must speak of it."""
    if isinstance(module, torch.jit.ScriptModule):
        return module.original_name == "Linear"
    return isinstance(module, nn.Linear) or type(module).__name__.endswith("Linear")


def is_linear_of_its_own(module: nn.Module) -> bool:
    """Whether it is a linear layer written without `nn.Linear`, by its parameters (the Conv1D of GPT-2) or its name."""
    own = dict(module.named_parameters(recurse=False))
    if not own or type(module).__module__.startswith("torch.nn.") or is_linear_like(module):
        return False
    if type(module).__name__.endswith(("Router", "Experts")):
        return True
    shapes = {name: tuple(p.shape) for name, p in own.items()}
    return own.keys() == {"weight", "bias"} and len(shapes["weight"]) == 2 and shapes["bias"][0] in shapes["weight"]


def is_activation(module: nn.Module) -> bool:
    """Whether it is one of the activation modules of `torch.nn` that exist by hand, or a subclass of one."""
    return isinstance(module, tuple(TWINS))


def obstacle(module: nn.Module) -> str | None:
    """Why `convert` must leave this linear layer or activation alone, or None if it need not (or has converted it)."""
    if is_linear_of_its_own(module):
        return "linear, but no nn.Linear: autograd differentiates it"
    reason = None if is_activation(module) else _obstacle_in_a_linear_layer(module)
    kind = nn.Linear if type(module) is Dense else torch_class(module)
    if reason is None and kind is not nn.Linear and kind not in TWINS:
        plain = next((c for c in TWINS if isinstance(module, c)), nn.Linear)
        reason = f"of type {type(module).__name__}, not nn.{plain.__name__} itself: what it overrides would be lost"
    if reason is None and "forward" in module.__dict__:
        reason = "its forward has been replaced on the instance"
    return reason


def _obstacle_in_a_linear_layer(layer: nn.Module) -> str | None:
    if isinstance(layer, torch.jit.ScriptModule):
        return "scripted: its code is compiled; convert before torch.jit.script"
    if isinstance(layer, LazyModuleMixin):
        return "lazy: its shape is not known yet; run one batch through the model, then convert"
    if parametrize.is_parametrized(layer):
        return "parametrized: convert it before registering the parametrization"
    if type(layer).__module__.startswith(("torch.ao.", "torch.nn.quantized")):
        return "quantised: it has a kernel of its own"
    if _is_sharded(layer):
        return "sharded: convert before fully_shard or parallelize_module"
    if isinstance(layer, NonDynamicallyQuantizableLinear):
        return "read, never called (nn.MultiheadAttention)"
    if type(layer) not in (nn.Linear, Dense):
        return None  # its class says it
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is not a Parameter: a hook recomputes it (weight_norm, spectral_norm, pruning)"
    if type(weight.data) is not Tensor:
        return f"its weight is a {type(weight.data).__name__}, not a plain tensor"
    if not (weight.is_floating_point() or weight.is_complex()):
        return f"quantised: its weight is {weight.dtype}"
    return None


def _is_sharded(layer: nn.Module) -> bool:
    """Whether a parameter is a DTensor. If nobody has imported that module, there is none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(p, module.DTensor) for p in layer.parameters(recurse=False))
