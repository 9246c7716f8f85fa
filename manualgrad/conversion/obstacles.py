"""What `convert` may touch: which linear layers, which activations after them, and why not the others."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from manualgrad.activation.built_in import Activation, activations, elu, leaky_relu, softplus
from manualgrad.conversion.taken_apart import taken_apart
from manualgrad.layers.dense import Dense


def is_linear_like(module: nn.Module) -> bool:
    """Whether a reader of the model would call it a linear layer, so that a report must speak of it."""
    if isinstance(module, torch.jit.ScriptModule):
        return module.original_name == "Linear"
    return isinstance(module, nn.Linear) or type(module).__name__.endswith("Linear")


def obstacle(layer: nn.Module) -> str | None:
    """Why this linear layer cannot become a `Dense`, or None if it can (or is one)."""
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
        return f"of type {type(layer).__name__}, not nn.Linear itself: what it overrides would be lost"
    if "forward" in layer.__dict__:
        return "its forward has been replaced on the instance"
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


class Sequence:
    """Which module directly follows which, in the `nn.Sequential`s of a model, and how often each is used."""

    def __init__(self, model: nn.Module) -> None:
        self.uses = Counter(id(child) for parent in model.modules() for child in parent._modules.values())
        self.taken_apart = taken_apart(model)
        self.next: dict[int, tuple[nn.Sequential, str]] = {}  # id of a module -> where its successor stands
        for parent in model.modules():
            if isinstance(parent, nn.Sequential) and _runs_in_order(parent):
                slots = list(parent._modules)
                for slot, following in zip(slots[:-1], slots[1:], strict=True):
                    self.next[id(parent._modules[slot])] = (parent, following)

    def fusible(self, layer: nn.Module) -> tuple[Activation | None, str]:
        """The activation that may move into `layer`; or None and why not ("" if none follows)."""
        parent, slot = self.next.get(id(layer), (None, ""))
        following = None if parent is None else parent._modules[slot]
        if following is None or type(following) not in _FUSED:
            return None, ""
        name = type(following).__name__
        if id(parent) in self.taken_apart:
            return (
                None,
                f"{name} not fused: {self.taken_apart[id(parent)]} does more with the nn.Sequential than call it",
            )
        if self.uses[id(layer)] > 1:
            return None, f"{name} not fused: the layer is used in several places"
        if self.uses[id(following)] > 1:
            return None, f"{name} not fused: it is used in several places"
        if has_hooks(layer):
            return None, f"{name} not fused: the layer has hooks, which would see a instead of z"
        if has_hooks(following) or "forward" in following.__dict__:
            return None, f"{name} not fused: it has hooks or a forward of its own"
        return _FUSED[type(following)](following), ""


def _runs_in_order(sequential: nn.Sequential) -> bool:
    return type(sequential).forward is nn.Sequential.forward and "forward" not in sequential.__dict__


# Exact types only: a subclass may compute something else. The module's parameters are kept as they are.
_FUSED: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: lambda module: activations["relu"],
    nn.Sigmoid: lambda module: activations["sigmoid"],
    nn.Tanh: lambda module: activations["tanh"],
    nn.SiLU: lambda module: activations["silu"],
    nn.GELU: lambda module: activations["gelu" if module.approximate == "none" else "gelu_tanh"],
    nn.LeakyReLU: lambda module: leaky_relu(module.negative_slope),
    nn.ELU: lambda module: elu(module.alpha),
    nn.Softplus: lambda module: softplus(module.beta, module.threshold),
}


def has_hooks(module: nn.Module) -> bool:
    """Whether anything listens to the module's calls, forwards or backwards."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
