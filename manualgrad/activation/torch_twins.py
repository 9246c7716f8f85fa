"""Which activation a module of `torch.nn` computes."""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from manualgrad.activation.built_in import Activation, activation_named, elu, leaky_relu, softplus


# How to make the activation, from which attributes of the module.
TWINS: dict[type[nn.Module], tuple[Callable[..., Activation], tuple[str, ...]]] = {
    nn.ReLU: (lambda: activation_named("relu"), ()),
    nn.Sigmoid: (lambda: activation_named("sigmoid"), ()),
    nn.Tanh: (lambda: activation_named("tanh"), ()),
    nn.SiLU: (lambda: activation_named("silu"), ()),
    nn.GELU: (lambda kind: activation_named("gelu_tanh" if kind == "tanh" else "gelu"), ("approximate",)),
    nn.LeakyReLU: (leaky_relu, ("negative_slope",)),
    nn.ELU: (elu, ("alpha",)),
    nn.Softplus: (softplus, ("beta", "threshold")),
}


def torch_class(module: nn.Module) -> type[Any]:
    """The class of `torch.nn` that the module is of, itself or as its subclass with a backward pass by hand (`layers`)."""
    kind = type(module)
    return kind.__dict__.get("torch_class", kind)


def twin_of(module: nn.Module, from_output: bool = True) -> Activation | None:
    """The activation that the module computes. None for all but the classes above: a subclass may compute something else.

    `from_output`: whether LeakyReLU and ELU compute sigma' from a where that is possible, or from z.
    """
    make, attributes = TWINS.get(torch_class(module), (None, ()))
    if make is None:
        return None
    values = [getattr(module, name) for name in attributes]
    return _made(make, *values, from_output) if make in (leaky_relu, elu) else _made(make, *values)


@functools.lru_cache
def _made(make: Callable[..., Activation], *values: Any) -> Activation:
    return make(*values)
