"""The backward pass of a dense layer, written by hand: which equation autograd is to use for what.

Shapes: n features in, m out, weight (m, n), bias (m,), input (..., n).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from manualgrad import equations
from manualgrad.activation.built_in import Activation, identity
from manualgrad.autograd.autocast import is_autocasting, without_autocast
from manualgrad.autograd.torch_state import are_transforms_active, is_any_autocast_enabled, is_exporting
from manualgrad.factored.choice import may_keep_factors, weight_gradient_or_factors


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
        if _is_view(z):  # of the product of all rows; autograd lets nobody write over a Function's view
            z = torch.ops.aten._unsafe_view.default(z, z.shape)  # the same memory, and no view
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
        ctx.saves = needs_weight, needs_a_below
        saved: tuple[Any, ...] = (a_below,) if needs_weight else ()
        if needs_a_below:
            saved += (weight,)
        if activation is not identity:
            saved += (_kept(activation, output),)
        ctx.save_for_backward(*saved)  # and no None: tools that draw the graph expect tensors alone

    @staticmethod
    def backward(ctx: Any, cost_gradient: Tensor | None, z_gradient: Tensor | None = None) -> tuple:
        upstream = z_gradient if cost_gradient is None else cost_gradient
        if upstream is None:
            return None, None, None, None
        if is_any_autocast_enabled() and is_autocasting(upstream):  # the dtypes were chosen in the forward pass
            with without_autocast(upstream):
                return _backward(ctx, cost_gradient, z_gradient)
        return _backward(ctx, cost_gradient, z_gradient)


class DenseFunctionWithTangent(DenseFunction):
    """The same, also differentiated forwards (`jvp`). It stands apart because `torch.compile` refuses a `jvp`."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        DenseFunction.setup_context(ctx, inputs, output)
        a_below, weight, _, activation = inputs
        kept, (saves_a_below, saves_weight) = _kept(activation, output), ctx.saves
        ctx.save_for_forward(a_below, weight, kept)  # held until `jvp` has run, which is at once
        # In the same places: vmap has one list of batch axes for both.
        ctx.save_for_backward(a_below if saves_a_below else None, weight if saves_weight else None, kept)
        ctx.saves = True, True

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


def _is_view(z: Tensor) -> bool:
    """As with 1-d and 3-d input. `torch.compile` and the transforms of `torch.func` cannot tell: there it may be one."""
    if torch.compiler.is_compiling():
        return z.dim() != 2 and not is_exporting()  # which is to show plain operations
    return are_transforms_active() or (type(z) is Tensor and z._is_view())


def _kept(activation: Activation, output: Any) -> Tensor | None:
    """What sigma' is computed from: a or z, or None where it is 1."""
    if activation is identity:
        return None
    return output if activation.from_output else output[1]


def _backward(ctx: Any, cost_gradient: Tensor | None, z_gradient: Tensor | None) -> tuple:
    """The gradients by the input, the weight and the bias, each only if it is needed; None for the activation."""
    needs_a_below, needs_weight, needs_bias, _ = ctx.needs_input_grad
    saved, (saves_a_below, saves_weight) = ctx.saved_tensors, ctx.saves
    a_below: Any = saved[0] if saves_a_below else None
    weight: Any = saved[saves_a_below] if saves_weight else None
    kept = None if ctx.activation is identity else saved[-1]
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
