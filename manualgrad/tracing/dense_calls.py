"""Listen to a `Dense`: what each of its calls receives and returns, and what its backward pass is given and returns."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from manualgrad import equations
from manualgrad.activation.built_in import identity
from manualgrad.autograd.autocast import without_autocast
from manualgrad.dry_run import copied
from manualgrad.explain.traced_step import TracedLayer
from manualgrad.layers.dense import Dense, DenseFunction, rows


class TracedCall:
    """One call of a layer. The backward pass and the update complete its numbers."""

    def __init__(self, name: str, call: int, layer: Dense, input: Tensor, output: Tensor) -> None:
        self.layer, sigma = layer, layer.activation
        inputs, a, weight = copied(input), copied(output), copied(layer.weight)
        bias = None if layer.bias is None else copied(layer.bias)
        with torch.no_grad(), without_autocast(input):
            # The same sum once more: a sigma that is computed in place has written over the layer's own.
            in_use = (x if x is None else x.to(a.dtype) for x in (inputs, weight, bias))  # in autocast's dtype, if any
            z = equations.weighted_sum(*in_use)
            self.kept = a if sigma.from_output else z
            derivative = copied(sigma.derivative(self.kept))  # which may be its argument
        self.has_gradient = False
        self.numbers = TracedLayer(
            name=name,
            call=call,
            activation=sigma.name,
            inputs=inputs,
            z=z,
            a=a,
            derivative=derivative,
            cost_gradient=torch.zeros_like(a),
            delta=torch.zeros_like(a),
            grad_weight=torch.zeros_like(weight),
            grad_bias=None if bias is None else torch.zeros_like(bias),
            weight_before=weight,
            weight_after=weight,
            bias_before=bias,
            bias_after=bias,
        )

    def hear_backward(self, gradients: tuple[Tensor | None, ...], upstream: tuple[Tensor | None, ...]) -> None:
        """Note dC/da, which `DenseFunction.backward` was given, and the gradients that it returned for input, weight and bias."""
        cost_gradient, sigma, numbers = upstream[0], self.layer.activation, self.numbers
        if cost_gradient is None:
            return
        self.has_gradient = True
        with torch.no_grad(), without_autocast(numbers.a):
            numbers.cost_gradient.copy_(cost_gradient)
            kept = None if sigma is identity else self.kept
            numbers.delta.copy_(equations.output_error(numbers.cost_gradient, sigma, kept))
            weight_gradient, delta = gradients[1], rows(numbers.delta)
            if weight_gradient is None:
                weight_gradient = equations.weight_gradient(delta, rows(numbers.inputs))
            numbers.grad_weight.copy_(weight_gradient.to_dense())
            if numbers.grad_bias is not None:
                bias_gradient = gradients[2]
                numbers.grad_bias.copy_(equations.bias_gradient(delta) if bias_gradient is None else bias_gradient)

    def finished(self, trained: Container[Tensor]) -> TracedLayer:
        """The numbers after the update, which was of the parameters `trained`."""
        weight = self.layer._parameters.get("weight")  # None if it is parametrized
        own = self.layer.parameters() if weight is None else (weight,)
        return replace(
            self.numbers,
            weight_after=copied(self.layer.weight),
            bias_after=None if self.layer.bias is None else copied(self.layer.bias),
            trained=any(p in trained for p in own),
        )


def listen(name: str, layer: Dense, calls: list[TracedCall]) -> None:
    """From now on every call of the layer, which must be a copy of our own, is appended to `calls`.

    Raises:
        ValueError: the layer's forward is not that of `Dense`; or, when it is called, its backward pass is autograd's.
    """
    if type(layer).forward is not Dense.forward or "forward" in layer.__dict__:
        raise ValueError(
            f"trace expected layer {name!r} to compute what a Dense computes, got {type(layer).__name__} with a forward of its "
            "own. Keep the Dense as it is, inside a module that does the rest."
        )

    def forward(input: Tensor) -> Tensor:
        with parametrize.cached():  # reading a parametrized weight twice may compute two different ones
            output = Dense.forward(layer, input)
            call = TracedCall(name, sum(call.layer is layer for call in calls), layer, input, output)
        calls.append(call)
        if output.requires_grad:
            node = output.grad_fn
            assert node is not None
            if not node.name().startswith(DenseFunction.__name__):
                raise ValueError(
                    f"trace expected layer {name!r} to be differentiated by its own backward pass, got {node.name()}. "
                    "Call trace outside of by_autograd(), and the layer outside of torch.func and torch.jit."
                )
            node.register_hook(call.hear_backward)
        return output

    layer.forward = forward  # type: ignore[method-assign]
