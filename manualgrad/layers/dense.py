"""A dense layer a = sigma(w a_below + b) whose backward pass is written by hand.

`DenseFunction` tells autograd which equation to use for what; `dense` checks its arguments and calls it; `Dense` is the
module, an `nn.Linear` with an activation. Shapes: n features in, m out, weight (m, n), bias (m,), input (..., n).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from manualgrad import equations
from manualgrad.activation.built_in import Activation, activation_named, identity
from manualgrad.autograd.apply import call, is_left_to_autograd
from manualgrad.autograd.autocast import is_autocasting, is_castable, without_autocast
from manualgrad.autograd.switch import is_by_autograd
from manualgrad.factored.choice import may_keep_factors, weight_gradient_or_factors
from manualgrad.layers.dense_checks import (
    check_arguments,
    check_definition,
    check_devices,
    check_linear,
    check_tensors,
    fit,
)


class DenseFunction(torch.autograd.Function):
    """a = sigma(w a_below + b), differentiated by `manualgrad.equations`.

    It keeps for the backward pass only what that will use: a_below for dC/dw, w for dC/da_below, and a, or else z, for
    sigma'. Where sigma' needs z, z is a second output: second derivatives then reach it through autograd.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        a_below: Tensor,  # (..., n)
        weight: Tensor,  # (m, n)
        bias: Tensor | None,  # (m,)
        activation: Activation,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if weight.dtype != a_below.dtype:  # autocast: `dense` has cast the input only
            weight = weight.to(a_below.dtype)
        if bias is not None and bias.dtype != a_below.dtype:
            bias = bias.to(a_below.dtype)
        z = equations.weighted_sum(a_below, weight, bias)
        if activation.value_in_place is not None and type(z) is Tensor:  # nobody else holds z; subclasses may refuse
            return activation.value_in_place(z)
        a = activation.value(z)
        return a if activation.from_output else (a, z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        a_below, weight, _, activation = inputs
        needs_a_below, needs_weight, _, _ = ctx.needs_input_grad
        ctx.activation = activation
        ctx.keeps_factors = needs_weight and may_keep_factors(weight, a_below)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            a_below if needs_weight else None, weight if needs_a_below else None, _kept(activation, output)
        )

    @staticmethod
    def backward(ctx: Any, cost_gradient: Tensor | None, z_gradient: Tensor | None = None) -> tuple:
        upstream = z_gradient if cost_gradient is None else cost_gradient
        if upstream is None:
            return None, None, None, None
        if is_autocasting(upstream):  # the dtypes were chosen in the forward pass
            with without_autocast(upstream):
                return _backward(ctx, cost_gradient, z_gradient)
        return _backward(ctx, cost_gradient, z_gradient)


class DenseFunctionWithTangent(DenseFunction):
    """The same, also differentiated forwards (`jvp`). It stands apart because `torch.compile` refuses a `jvp`."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        DenseFunction.setup_context(ctx, inputs, output)
        a_below, weight, _, activation = inputs
        ctx.save_for_forward(a_below, weight, _kept(activation, output))  # held until `jvp` has run, which is at once

    @staticmethod
    def jvp(
        ctx: Any, a_below: Tensor | None, weight: Tensor | None, bias: Tensor | None, _: None
    ) -> Any:  # the tangents of a, or of (a, z)
        at_a_below, at_weight, kept = ctx.saved_tensors
        if at_weight.dtype != at_a_below.dtype:
            at_weight = at_weight.to(at_a_below.dtype)
            weight = None if weight is None else weight.to(at_a_below.dtype)
        if bias is not None:
            bias = bias.to(at_a_below.dtype)
        z = equations.weighted_sum_tangent(at_a_below, at_weight, a_below, weight, bias)
        a = None if z is None else equations.activation_tangent(z, ctx.activation, kept)
        return a if ctx.activation.from_output else (a, z)


def _kept(activation: Activation, output: Any) -> Tensor | None:
    """What sigma' is computed from: a or z, or None where it is 1."""
    if activation is identity:
        return None
    return output if activation.from_output else output[1]


def _backward(ctx: Any, cost_gradient: Tensor | None, z_gradient: Tensor | None) -> tuple:
    """The gradients by the input, the weight and the bias, each only if it is needed; None for the activation."""
    needs_a_below, needs_weight, needs_bias, _ = ctx.needs_input_grad
    a_below, weight, kept = ctx.saved_tensors
    a_below_gradient = weight_gradient = bias_gradient = None
    # dC/dz: through a, and also directly where z itself is used (only in second derivatives)
    delta: Any = z_gradient
    if cost_gradient is not None:
        delta = equations.output_error(cost_gradient, ctx.activation, kept)
        if z_gradient is not None:
            delta = delta + z_gradient
    if needs_a_below:
        if weight.dtype != delta.dtype:
            weight = weight.to(delta.dtype)
        a_below_gradient = equations.backpropagated_error(weight, delta)
    if delta.dim() != 2:
        delta, a_below = rows(delta), None if a_below is None else rows(a_below)
    if needs_weight:
        weight_gradient = weight_gradient_or_factors(delta, a_below, ctx.keeps_factors)
    if needs_bias:
        bias_gradient = equations.bias_gradient(delta)
    return a_below_gradient, weight_gradient, bias_gradient, None


def rows(x: Tensor) -> Tensor:
    """x (..., k) as a matrix (r, k): every leading axis counts as batch; a vector is a batch of one."""
    return x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def dense(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | Activation | None = None
) -> Tensor:
    """sigma(input @ weight.T + bias), with a backward pass written by hand (`manualgrad.equations`).

    Args:
        input: (..., n), any number of leading axes, also none and also empty ones.
        weight: (m, n).
        bias: (m,) or None.
        activation: a name from `mg.activations`, an `Activation`, or None for the identity.

    Returns:
        (..., m), in the dtype of `input`: floating point or complex. Under `torch.autocast`, in autocast's dtype.
        Gradients are sums over the leading axes, as autograd's are.

    Raises:
        ValueError: shapes or devices do not fit, or the activation is unknown.
        TypeError: input, weight and bias are not floating point or complex tensors of one dtype.
    """
    if not isinstance(activation, Activation):
        activation = activation_named(activation)
    if is_by_autograd() or is_left_to_autograd():
        z = nn.functional.linear(input, weight, bias)
        with without_autocast(z):  # which would compute some activations in float32
            return activation.value(z)
    if fit(input, weight, bias) and not is_autocasting(input):
        return _apply(input, weight, bias, activation)  # the usual case, quickly
    check_tensors(input, weight, bias)
    if is_autocasting(input) and is_castable(input) and is_castable(weight):
        # As autocast does for a linear layer. The parameters are cast inside, so that they stay leaves.
        input = input.to(torch.get_autocast_dtype(input.device.type))
        bias_dtype = input.dtype if bias is None or is_castable(bias) else bias.dtype
        check_arguments(input, weight, bias, input.dtype, bias_dtype)
        with without_autocast(input):
            return _apply(input, weight, bias, activation)
    check_arguments(input, weight, bias, weight.dtype, weight.dtype if bias is None else bias.dtype)
    return _apply(input, weight, bias, activation)


torch.fx.wrap("dense")  # symbolic tracing records the call as it is: a Proxy has no shape to check


def _apply(input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    try:
        if not torch.is_grad_enabled():  # nothing to differentiate: a plain linear layer, for inference and export
            output = DenseFunction.forward(input, weight, bias, activation)
        else:
            output = call(DenseFunction, DenseFunctionWithTangent, input, weight, bias, activation)
    except (
        RuntimeError
    ):  # PyTorch looks at the devices anyway: looking first would cost every call what only this one needs
        check_devices(input, weight, bias)
        raise
    return output if isinstance(output, Tensor) else output[0]


class Dense(nn.Linear):
    """An `nn.Linear` with an activation, differentiated by hand: a = sigma(w a_below + b).

    Same parameters, initialisation and state dict keys as `nn.Linear`; `isinstance(layer, nn.Linear)` holds.

    Args:
        in_features: n, the size of the input's last axis.
        out_features: m, the size of the output's.
        bias: whether there is a b.
        activation: a name from `mg.activations`, an `Activation`, or None for the identity.
        device, dtype: of the parameters.

    Shapes: input (..., n), weight (m, n), bias (m,) -> output (..., m). Raises what `dense` raises, and TypeError or ValueError
    for sizes that are no integers or negative, and a bias that is no bool.
    """

    path: str | None = None  # where in its model `convert` found the layer; errors name it

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str | Activation | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_definition(in_features, out_features, bias, type(self).__name__)
        sigma = activation_named(activation)  # what is wrong fails before anything is allocated
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.activation = sigma

    @classmethod
    def from_linear(cls, linear: nn.Linear, activation: str | Activation | None = None) -> Dense:
        """A `Dense` that shares the Parameters of `linear` (the same objects), its training flag and nothing else.

        Raises:
            TypeError: `linear` is not an `nn.Linear`.
            ValueError: it is a lazy one that has seen no batch.
        """
        check_linear(linear)
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, activation, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        # `self.weight` is found only after a search in vain, which takes a tenth of a small layer's time. A weight that is
        # computed (a parametrization, weight_norm) is no parameter; it is found as an attribute.
        held: dict[str, Any] = self._parameters
        weight = held["weight"] if "weight" in held else self.weight
        bias = held["bias"] if "bias" in held else self.bias
        try:
            return dense(input, weight, bias, self.activation)
        except (TypeError, ValueError) as error:
            if not self.path:
                raise
            raise type(error)(f"Layer {self.path!r}: {error}") from error

    def extra_repr(self) -> str:
        plain = super().extra_repr()
        return plain if self.activation is identity else f"{plain}, activation={self.activation.name!r}"
