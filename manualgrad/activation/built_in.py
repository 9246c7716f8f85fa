"""The built-in activation functions: sigma, and sigma' written by hand.

sigma' is computed from the output a where that is possible (sigmoid: a (1 - a)), so that a layer need not keep z;
otherwise from z. `product` is g * sigma' in one pass over memory: PyTorch's own backward kernel, which rounds as
autograd does. The formula that it computes stands beside it, in `derivative`.

The definitions are those of `torch.nn`; the derivatives are theirs.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from manualgrad.activation.activation import Activation, activation_named, activations, build_in


__all__ = ["Activation", "activation_named", "activations", "elu", "identity", "leaky_relu", "softplus"]

aten = torch.ops.aten


def _step(x: Tensor) -> Tensor:
    """0 where x <= 0, else 1: also for NaN, as the kernel does."""
    return (~(x <= 0)).to(x.dtype)


def _gelu_derivative(z: Tensor) -> Tensor:
    """Phi(z) + z phi(z), the normal distribution and its density: gelu(z) = z Phi(z)."""
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return torch.special.ndtr(z) + z * density


def _gelu_tanh_derivative(z: Tensor) -> Tensor:
    """gelu_tanh(z) = z/2 (1 + t), t = tanh(sqrt(2/pi) (z + 0.044715 z^3)); so (1 + t)/2 + z/2 (1 - t^2) inner'(z)."""
    scale = math.sqrt(2 / math.pi)
    t = torch.tanh(scale * (z + 0.044715 * z**3))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * scale * (1 + 3 * 0.044715 * z * z)


def _silu_derivative(z: Tensor) -> Tensor:
    """silu(z) = z s, s = sigmoid(z); so s + z s (1 - s)."""
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def leaky_relu(negative_slope: float = 0.01, from_output: bool = True) -> Activation:
    """max(z, 0) + negative_slope * min(z, 0). sigma' is negative_slope for z <= 0, else 1.

    `from_output`: whether it is computed from a where that is possible, or from z.
    """
    name, recipe = f"leaky_relu({negative_slope:g})", (leaky_relu, (negative_slope, from_output))
    return Activation(name, **_leaky_relu(negative_slope, from_output), recipe=recipe)


def _leaky_relu(negative_slope: float, from_output: bool = True) -> dict[str, Any]:
    from_output = from_output and negative_slope > 0  # then a and z have the same sign

    def derivative(x: Tensor) -> Tensor:
        return torch.where(x > 0, 1.0, torch.full_like(x, negative_slope))

    return {
        "value": partial(F.leaky_relu, negative_slope=negative_slope),
        "derivative": derivative,
        "from_output": from_output,
        "product": lambda g, x: aten.leaky_relu_backward(g, x, negative_slope, from_output),
        "value_in_place": partial(F.leaky_relu_, negative_slope=negative_slope),
    }


def elu(alpha: float = 1.0, from_output: bool = True) -> Activation:
    """z for z > 0, else alpha (e^z - 1). sigma' is 1, or alpha e^z = a + alpha.

    The sum is exact to the rounding of a: autograd keeps z and gets e^z right where it is far below that, near -alpha. So does
    this with `from_output=False`.
    """
    return Activation(f"elu({alpha:g})", **_elu(alpha, from_output), recipe=(elu, (alpha, from_output)))


def _elu(alpha: float, from_output: bool = True) -> dict[str, Any]:
    from_output = from_output and alpha >= 0  # then a and z have the same sign

    def derivative(x: Tensor) -> Tensor:
        return torch.where(x <= 0, x + alpha if from_output else alpha * torch.exp(x.clamp(max=0)), 1.0)

    return {
        "value": partial(F.elu, alpha=alpha),
        "derivative": derivative,
        "from_output": from_output,
        "product": lambda g, x: aten.elu_backward(g, alpha, 1.0, 1.0, from_output, x),
        "value_in_place": partial(F.elu_, alpha=alpha),
    }


def softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation:
    """log(1 + e^(beta z)) / beta, and z itself where beta z > threshold. sigma' is sigmoid(beta z), or 1."""
    name = f"softplus({beta:g}, {threshold:g})"
    return Activation(name, **_softplus(beta, threshold), recipe=(softplus, (beta, threshold)))


def _softplus(beta: float, threshold: float) -> dict[str, Any]:
    def derivative(z: Tensor) -> Tensor:
        return torch.where(beta * z > threshold, 1.0, torch.sigmoid(beta * z)).to(z.dtype)

    return {
        "value": partial(F.softplus, beta=beta, threshold=threshold),
        "derivative": derivative,
        "product": lambda g, z: aten.softplus_backward(g, z, beta, threshold),
    }


_of_a = partial(build_in, from_output=True)  # name, sigma(z), and sigma'(z) as a function of a

_of_a("identity", lambda z: z, torch.ones_like)
_of_a("relu", F.relu, _step, product=lambda g, a: aten.threshold_backward(g, a, 0), value_in_place=torch.relu_)
build_in("leaky_relu", **_leaky_relu(0.01))
build_in("elu", **_elu(1.0))
_of_a("sigmoid", torch.sigmoid, lambda a: a * (1 - a), product=aten.sigmoid_backward, value_in_place=torch.sigmoid_)
_of_a("tanh", torch.tanh, lambda a: 1 - a * a, product=aten.tanh_backward, value_in_place=torch.tanh_)
build_in("softplus", **_softplus(1.0, 20.0))
build_in("gelu", F.gelu, _gelu_derivative, product=aten.gelu_backward)
_gelu_tanh, _gelu_tanh_backward = (partial(gelu, approximate="tanh") for gelu in (F.gelu, aten.gelu_backward))
build_in("gelu_tanh", _gelu_tanh, _gelu_tanh_derivative, product=_gelu_tanh_backward)
build_in("silu", F.silu, _silu_derivative, product=aten.silu_backward)
identity = activations["identity"]
