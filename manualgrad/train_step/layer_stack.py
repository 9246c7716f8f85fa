"""A model as the list of layers that the four steps run over: z = w a + b, a = sigma(z), one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from manualgrad.activation.built_in import Activation, activations, elu, identity, leaky_relu, softplus
from manualgrad.activation.torch_twins import TWINS, torch_class, twin_of
from manualgrad.equations import output_error
from manualgrad.layers.dense import Dense
from manualgrad.losses.loss import Loss
from manualgrad.train_step.loss_by_hand import read_from_loss
from manualgrad.train_step.recording.recorder import live
from manualgrad.train_step.seen import Seen, check_parameters


class LiveActivation(Activation):
    """An activation that a user has written, called anew in every replay of a recording. Not known by a name."""

    def __init__(self, sigma: Activation) -> None:
        super().__init__(
            sigma.name,
            partial(live, lambda z: sigma.value(z)),
            sigma.derivative,
            from_output=sigma.from_output,
            product=partial(live, lambda gradient, kept: output_error(gradient, sigma, kept)),
            recipe=sigma.recipe,
        )


def _is_built_in(sigma: Activation) -> bool:
    return activations.get(sigma.name) is sigma or sigma.recipe[0] in (leaky_relu, elu, softplus)


@dataclass(frozen=True)
class Layer:
    """One layer: w (m, n) and b (m,), or neither for one that only flattens axes, applies its sigma or drops units."""

    name: str
    weight: nn.Parameter | None = None
    bias: nn.Parameter | None = None
    activation: Activation = identity
    axes: tuple[int, int] = (-1, -1)  # flattened into one; a single axis stays as it is
    dropout: float = 0.0  # the probability that a unit is dropped

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in (self.weight, self.bias) if p is not None]


class LayerStack:
    """The layers of a model, and whether they, and the loss, are still what they were.

    Models: `Dense` and `nn.Linear`, `nn.Flatten`, `nn.Identity`, `nn.Dropout` and the activations' `torch.nn` twins, alone or
    in `nn.Sequential`, nested as one likes; `MLP` is such a one.

    Raises:
        TypeError: another module, hooks, a parameter that is not a plain real one: each by its name.
        ValueError: tied weights, several dtypes or devices, no weights at all.
    """

    def __init__(self, model: nn.Module, loss: nn.Module, by_hand: Loss) -> None:
        self.layers: list[Layer] = []
        self._seen = Seen()
        self._add(model, "", type(model).__name__)
        self._seen.enter(loss, f"the loss, a {type(loss).__name__}")
        for where, key in read_from_loss(loss, by_hand):
            self._seen.read(where, key, of="loss")
        self.parameters = [p for layer in self.layers for p in layer.parameters()]
        names = [
            f"{layer.name}.{kind}".lstrip(".")
            for layer in self.layers
            for kind in ("weight", "bias")
            if getattr(layer, kind) is not None
        ]
        check_parameters(self.parameters, names)
        self._seen.memory_of(self.parameters, names)
        self.check_unchanged = self._seen.check
        self.dtype, self.device = self.parameters[0].dtype, self.parameters[0].device
        if self.draws and self.device.type != "cpu":
            raise TypeError(
                f"TrainStep expected dropout on the CPU alone, got some on {self.device}, where autograd draws other numbers. "
                "Train with autograd."
            )

    def _add(self, module: nn.Module, name: str, called: str) -> None:
        self._seen.enter(module, called)
        kind: Any = type(module)
        if kind.forward is nn.Sequential.forward and kind.__iter__ is nn.Sequential.__iter__:
            self._seen.keys_of(module._modules)
            for key, child in module._modules.items():  # named_children() would leave out a layer's second place
                assert child is not None
                path = f"{name}.{key}".lstrip(".")
                self._seen.read(module._modules, key)
                self._add(child, path, f"`{path}`, a {type(child).__name__}")
        elif kind in _READERS:
            _READERS[kind](self, module, name)
        elif (sigma := twin_of(module)) is not None:
            for key in TWINS[torch_class(module)][1]:
                self._seen.read(module.__dict__, key)
            if self.layers and self.layers[-1].activation is identity and not self.layers[-1].dropout:
                self.layers[-1] = replace(self.layers[-1], activation=sigma)
            else:
                self.layers.append(Layer(name, activation=sigma))
        elif kind is not nn.Identity:
            raise TypeError(
                f"TrainStep expected Dense, nn.Linear, nn.Flatten, nn.Identity, nn.Dropout, activations such as nn.ReLU, and "
                f"nn.Sequential of them, got {called}. Train this model with autograd: mg.convert(model) and an optimizer."
            )

    def _add_dense(self, module: nn.Module, name: str) -> None:
        sigma = self._seen.read(module.__dict__, "activation") if type(module) is Dense else identity
        weight, bias = (self._seen.read(module._parameters, key) for key in ("weight", "bias"))
        self.layers.append(Layer(name, weight, bias, sigma if _is_built_in(sigma) else LiveActivation(sigma)))

    def _add_flatten(self, module: nn.Module, name: str) -> None:
        start, end = (self._seen.read(module.__dict__, key) for key in ("start_dim", "end_dim"))
        self.layers.append(Layer(name, axes=(start, end)))

    def _add_dropout(self, module: nn.Module, name: str) -> None:
        p, inplace, training = (self._seen.read(module.__dict__, key) for key in ("p", "inplace", "training"))
        if inplace:
            raise TypeError(
                f"TrainStep expected dropout with inplace=False, got `{name}` with inplace=True. "
                "Make it without, or train with autograd."
            )
        if training:
            self.layers.append(Layer(name, dropout=float(p)))

    @property
    def draws(self) -> bool:
        """Whether a forward pass draws random numbers, so that a second one would not be the same."""
        return any(layer.dropout for layer in self.layers)

    def check_inputs(self, inputs: Tensor) -> Tensor:
        """What the model gives for `inputs`, without values (on the meta device).

        Raises:
            TypeError: another dtype than the parameters'.
            ValueError: another device than the parameters', or another number of features than a layer takes.
        """
        if inputs.dtype != self.dtype:
            raise TypeError(
                f"TrainStep expected inputs of the parameters' dtype {self.dtype}, got {inputs.dtype}. "
                f"Convert them with inputs.to({self.dtype})."
            )
        if inputs.device != self.device:
            raise ValueError(
                f"TrainStep expected inputs on the parameters' device {self.device}, got {inputs.device}. "
                f"Move them with inputs.to('{self.device}')."
            )
        a = torch.empty(inputs.shape, dtype=inputs.dtype, device="meta")
        for layer in self.layers:
            if layer.weight is None:
                a = a.flatten(*layer.axes) if a.dim() else a
                continue
            m, n = layer.weight.shape
            if a.dim() == 0 or a.size(-1) != n:
                raise ValueError(
                    f"TrainStep expected inputs that give layer `{layer.name}` a tensor of shape (..., {n}), got one of shape "
                    f"{tuple(a.shape)} from inputs of shape {tuple(inputs.shape)}. Change the inputs or the model's sizes."
                )
            a = a.new_empty((*a.shape[:-1], m))
        return a


_READERS: dict[type[nn.Module], Callable[[LayerStack, nn.Module, str], None]] = {
    Dense: LayerStack._add_dense,
    nn.Linear: LayerStack._add_dense,
    nn.Flatten: LayerStack._add_flatten,
    nn.Dropout: LayerStack._add_dropout,
}
