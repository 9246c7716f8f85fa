"""Listening to a `Dense`: what goes in and comes out in each of its calls, and what its backward pass is given and returns."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from manualgrad import equations
from manualgrad.activation.built_in import identity
from manualgrad.autograd.autocast import without_autocast
from manualgrad.dry_run import copied
from manualgrad.layers.dense import Dense, DenseFunction, rows
from manualgrad.tracing.result import TracedLayer


class Call:
    """One call of a layer. What is only known after the backward pass and the update is filled in then."""

    def __init__(self, name: str, call: int, layer: Dense, input: Tensor, output: Tensor) -> None:
        self.name, self.call, self.layer = name, call, layer
        self.inputs, self.a = copied(input), copied(output)
        self.weight_before = copied(layer.weight)
        self.bias_before = None if layer.bias is None else copied(layer.bias)
        cast = self.a.dtype  # that of the input and the weight, or autocast's
        bias = None if self.bias_before is None else self.bias_before.to(cast)
        with torch.no_grad(), without_autocast(input):
            # The same sum once more: a sigma that is computed in place has written over the layer's own.
            self.z = equations.weighted_sum(self.inputs.to(cast), self.weight_before.to(cast), bias)
            self.kept = self.a if layer.activation.from_output else self.z
            self.derivative = copied(layer.activation.derivative(self.kept))  # which may be its argument
        self.has_gradient = False
        self.cost_gradient, self.delta = torch.zeros_like(self.a), torch.zeros_like(self.a)
        self.grad_weight = torch.zeros_like(self.weight_before)
        self.grad_bias = None if self.bias_before is None else torch.zeros_like(self.bias_before)

    def hear_backward(self, gradients: tuple[Tensor | None, ...], upstream: tuple[Tensor | None, ...]) -> None:
        """What `DenseFunction.backward` returned, by the input, the weight and the bias, and what it was given: dC/da."""
        cost_gradient, sigma = upstream[0], self.layer.activation
        if cost_gradient is None:
            return
        self.has_gradient = True
        with torch.no_grad(), without_autocast(self.a):
            self.cost_gradient = copied(cost_gradient)
            kept = None if sigma is identity else self.kept
            self.delta = copied(
                equations.output_error(self.cost_gradient, sigma, kept)
            )  # dC/da itself for the identity
            weight_gradient = gradients[1]
            if weight_gradient is None:
                weight_gradient = equations.weight_gradient(rows(self.delta), rows(self.inputs))
            self.grad_weight.copy_(weight_gradient.to_dense())
            if self.grad_bias is not None:
                bias_gradient = gradients[2]
                self.grad_bias.copy_(
                    equations.bias_gradient(rows(self.delta)) if bias_gradient is None else bias_gradient
                )

    def finished(self, trained: Container[Tensor]) -> TracedLayer:
        """After the update of the parameters `trained`."""
        weight = self.layer._parameters.get("weight")  # None if it is parametrized
        own = self.layer.parameters() if weight is None else (weight,)
        return TracedLayer(
            name=self.name,
            call=self.call,
            activation=self.layer.activation.name,
            inputs=self.inputs,
            z=self.z,
            a=self.a,
            derivative=self.derivative,
            cost_gradient=self.cost_gradient,
            delta=self.delta,
            grad_weight=self.grad_weight,
            grad_bias=self.grad_bias,
            weight_before=self.weight_before,
            weight_after=copied(self.layer.weight),
            bias_before=self.bias_before,
            bias_after=None if self.layer.bias is None else copied(self.layer.bias),
            trained=any(p in trained for p in own),
        )


def listen(name: str, layer: Dense, calls: list[Call]) -> None:
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
            call = Call(name, sum(call.layer is layer for call in calls), layer, input, output)
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
