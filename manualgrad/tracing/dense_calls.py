"""Listen to a `Dense`: what each of its calls receives and returns, and what its backward pass is given and returns."""

from collections.abc import Container
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from manualgrad import equations
from manualgrad.activation.built_in import Activation, identity
from manualgrad.activation.torch_twins import twin_of
from manualgrad.autograd.autocast import without_autocast
from manualgrad.dry_run import copied
from manualgrad.explain.printable import printable
from manualgrad.explain.traced_step import TracedLayer
from manualgrad.layers.dense import Dense
from manualgrad.layers.dense_function import DenseFunction, rows


class TracedCall:
    """One call of a layer. The backward pass and the update complete its numbers."""

    def __init__(self, name: str, call: int, layer: Dense, input: Tensor, output: Tensor) -> None:
        self.layer, self.output, self.is_paired, self.has_gradient = layer, output, False, False
        inputs, a, weight = copied(input), copied(output), copied(layer.weight)
        bias = None if layer.bias is None else copied(layer.bias)
        with torch.no_grad(), without_autocast(input):
            # The same sum once more: a sigma that is computed in place has written over the layer's own.
            in_use = (x if x is None else x.to(a.dtype) for x in (inputs, weight, bias))  # in autocast's dtype, if any
            z = equations.weighted_sum(*in_use)
        self.numbers = TracedLayer(
            name=name,
            call=call,
            activation="",  # until sigma is set
            inputs=inputs,
            z=z,
            a=a,
            derivative=a,
            cost_gradient=torch.zeros_like(a),
            delta=torch.zeros_like(a),
            grad_weight=torch.zeros_like(weight),
            grad_bias=None if bias is None else torch.zeros_like(bias),
            weight_before=weight,
            weight_after=weight,
            bias_before=bias,
            bias_after=bias,
        )
        self._set_sigma(layer.activation, a)

    def pair(self, sigma: Activation, output: Tensor) -> None:
        """A module has received z as this call returned it, and returned `output`, sigma of it."""
        self.is_paired = True
        self._set_sigma(sigma, copied(output))
        output.register_hook(self._hear_cost_gradient)

    def _set_sigma(self, sigma: Activation, a: Tensor) -> None:
        self.sigma, self.kept = sigma, a if sigma.from_output else self.numbers.z
        with torch.no_grad(), without_autocast(a):
            derivative = copied(sigma.derivative(self.kept))  # which may be its argument
        self.numbers = replace(self.numbers, activation=sigma.name, a=a, derivative=derivative)

    def _hear_cost_gradient(self, cost_gradient: Tensor) -> None:
        self.numbers.cost_gradient.copy_(cost_gradient)

    def hear_backward(self, gradients: tuple[Tensor | None, ...], upstream: tuple[Tensor | None, ...]) -> None:
        """Note dC/da, which `DenseFunction.backward` was given, and the gradients that it returned for input, weight and bias."""
        cost_gradient = upstream[0]
        if cost_gradient is None:
            return
        self.has_gradient = True
        with torch.no_grad(), without_autocast(self.numbers.a):
            if self.is_paired:  # and given delta: dC/dz, unless z is used elsewhere too
                delta = equations.output_error(self.numbers.cost_gradient, self.sigma, self.kept)
                if not torch.allclose(delta, cost_gradient, rtol=0, atol=0, equal_nan=True):
                    self._set_sigma(identity, self.numbers.z)
                    self.is_paired = False
            numbers = self.numbers
            if not self.is_paired:
                numbers.cost_gradient.copy_(cost_gradient)
                kept = None if self.sigma is identity else self.kept
                delta = equations.output_error(numbers.cost_gradient, self.sigma, kept)
            numbers.delta.copy_(delta)
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
    shown = printable(repr(name))
    if type(layer).forward is not Dense.forward or "forward" in layer.__dict__:
        raise ValueError(
            f"trace expected layer {shown} to compute what a Dense computes, got {type(layer).__name__} with a forward of its "
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
                    f"trace expected layer {shown} to be differentiated by its own backward pass, got {node.name()}. "
                    "Call trace outside of by_autograd(), and the layer outside of torch.func and torch.jit."
                )
            node.register_hook(call.hear_backward)
        return output

    layer.forward = forward  # type: ignore[method-assign]


def listen_to_activation(module: nn.Module, calls: list[TracedCall]) -> None:
    """From now on the module, which must be a copy of our own, names sigma of the calls whose outputs it receives as they are."""

    def before(module: nn.Module, arguments: tuple) -> None:
        received[:] = [c for c in calls if arguments and c.output is arguments[0] and c.sigma is identity]

    def after(module: nn.Module, arguments: tuple, output: Tensor) -> None:
        sigma = twin_of(module, from_output=getattr(module, "inplace", False))
        if received and sigma is not None and isinstance(output, Tensor) and output.requires_grad:
            received[0].pair(sigma, output)

    received: list[TracedCall] = []
    module.register_forward_pre_hook(before)
    module.register_forward_hook(after, prepend=True)  # before a hook that returns something else
