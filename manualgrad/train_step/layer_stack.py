"""A model as the list of layers that the four steps run over: z = w a + b, a = sigma(z), one after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from manualgrad.activation.built_in import Activation, activations, elu, identity, leaky_relu, softplus
from manualgrad.activation.torch_twins import TWINS, torch_class, twin_of
from manualgrad.equations import output_error
from manualgrad.layers.dense import Dense
from manualgrad.train_step.recording.recorder import live


class LiveActivation(Activation):
    """An activation that a user has written, called anew in every replay of a recording. Not known by a name."""

    def __init__(self, sigma: Activation) -> None:
        super().__init__(
            sigma.name,
            partial(live, sigma.value),
            sigma.derivative,
            from_output=sigma.from_output,
            product=partial(live, lambda gradient, kept: output_error(gradient, sigma, kept)),
            recipe=sigma.recipe,
        )


def _is_built_in(sigma: Activation) -> bool:
    return activations.get(sigma.name) is sigma or sigma.recipe[0] in (leaky_relu, elu, softplus)


@dataclass(frozen=True)
class Layer:
    """One layer: w (m, n) and b (m,), or neither for one that only flattens axes or applies its sigma."""

    name: str
    weight: nn.Parameter | None = None
    bias: nn.Parameter | None = None
    activation: Activation = identity
    axes: tuple[int, int] = (-1, -1)  # flattened into one; a single axis stays as it is

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in (self.weight, self.bias) if p is not None]


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class LayerStack:
    """The layers of a model, and whether they are still what they were.

    Models: `Dense` and `nn.Linear`, `nn.Flatten`, `nn.Identity` and the activations' `torch.nn` twins, alone or in
    `nn.Sequential`, nested as one likes; `MLP` is such a one.

    Raises:
        TypeError: another module, hooks, a parameter that is not a plain real one: each by its name.
        ValueError: tied weights, several dtypes or devices, no weights at all.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers: list[Layer] = []
        self._hooks: list[dict] = []
        self._objects: list[tuple[dict, str, Any]] = []  # where each thing that was read lies
        self._children: list[tuple[dict, int]] = []
        self._add(model, "", type(model).__name__)
        self.parameters = [p for layer in self.layers for p in layer.parameters()]
        self.names = [
            f"{layer.name}.{kind}".lstrip(".")
            for layer in self.layers
            for kind in ("weight", "bias")
            if getattr(layer, kind) is not None
        ]
        _check_parameters(self.parameters, self.names)
        self.dtype, self.device = self.parameters[0].dtype, self.parameters[0].device
        self._memory = [
            p.detach() for p in self.parameters
        ]  # held, so that nothing else can come to lie at the address
        self._layouts = _layouts(self.parameters)
        self._places, self._keys, self._things = zip(*self._objects, strict=True)

    def _add(self, module: nn.Module, name: str, called: str) -> None:
        kind = type(module)
        hooks = [getattr(module, hook) for hook in _HOOKS]
        if any(hooks) or "forward" in module.__dict__:
            raise TypeError(
                f"TrainStep expected modules without hooks, got some on {called}, which it would not call. "
                "Remove them, or train with autograd."
            )
        self._hooks += hooks
        if kind.forward is nn.Sequential.forward:
            self._children.append((module._modules, len(module._modules)))
            for key, child in module._modules.items():  # named_children() would leave out a layer's second place
                assert child is not None
                path = f"{name}.{key}".lstrip(".")
                self._objects.append((module._modules, key, child))
                self._add(child, path, f"`{path}`, a {type(child).__name__}")
        elif kind is Dense or kind is nn.Linear:
            sigma = self._read(module.__dict__, "activation") if kind is Dense else identity
            weight, bias = (self._read(module._parameters, key) for key in ("weight", "bias"))
            self.layers.append(Layer(name, weight, bias, sigma if _is_built_in(sigma) else LiveActivation(sigma)))
        elif kind is nn.Flatten:
            axes = tuple(self._read(module.__dict__, key) for key in ("start_dim", "end_dim"))
            self.layers.append(Layer(name, axes=axes))
        elif (sigma := twin_of(module)) is not None:
            for key in TWINS[torch_class(module)][1]:
                self._read(module.__dict__, key)
            if self.layers and self.layers[-1].activation is identity:
                self.layers[-1] = replace(self.layers[-1], activation=sigma)
            else:
                self.layers.append(Layer(name, activation=sigma))
        elif kind is not nn.Identity:
            raise TypeError(
                f"TrainStep expected Dense, nn.Linear, nn.Flatten, nn.Identity, activations such as nn.ReLU, and nn.Sequential "
                f"of them, got {called}. Train this model with autograd: mg.convert(model) and an optimizer."
            )

    def _read(self, where: dict, key: str) -> Any:
        self._objects.append((where, key, where[key]))
        return where[key]

    def check_unchanged(self) -> None:
        """Raises RuntimeError if a layer or parameter is no longer the one, or not where, it was."""
        # At every step: hence maps, which call no Python.
        if not all(map(is_, map(dict.get, self._places, self._keys), self._things)):
            key = next(key for where, key, thing in self._objects if where.get(key) is not thing)
            raise RuntimeError(_changed(f"`{key}` of the model was replaced"))
        if any(self._hooks):
            raise RuntimeError(_changed("a hook was added to the model, which TrainStep would not call"))
        if _layouts(self.parameters) != self._layouts:
            moved = next(
                name
                for name, p, memory in zip(self.names, self.parameters, self._memory, strict=True)
                if _layouts([p]) != _layouts([memory])
            )
            raise RuntimeError(_changed(f"the parameter `{moved}` was moved or reallocated"))
        for where, size in self._children:
            if len(where) != size:
                raise RuntimeError(_changed("a layer was added to the model"))

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


def _layouts(parameters: list[nn.Parameter] | list[Tensor]) -> list[Any]:
    """Where the parameters lie, and how: other sizes or strides can begin at the same address."""
    return [
        *map(Tensor.data_ptr, parameters),
        *map(Tensor.size, parameters),
        *map(Tensor.stride, parameters),
    ]


def _changed(what: str) -> str:
    return (
        f"TrainStep expected the model that it was made for, but {what}. Nothing was updated. "
        "Make a new one: mg.TrainStep(model, loss, optimizer)."
    )


def _check_parameters(parameters: list[nn.Parameter], names: list[str]) -> None:
    if not parameters:
        raise ValueError("TrainStep expected a model with weights, got one without. Give it a Dense layer.")
    for p, name in zip(parameters, names, strict=True):
        if type(p) is not nn.Parameter or p.is_meta or not p.is_floating_point() or p.layout != torch.strided:
            raise TypeError(
                f"TrainStep expected plain real floating point parameters, got `{name}`, a {type(p).__name__} of {p.dtype} "
                f"on {p.device}. Convert or materialise it first, or train with autograd."
            )
        if p._backward_hooks or p._post_accumulate_grad_hooks:
            raise TypeError(
                f"TrainStep expected parameters without hooks, got some on `{name}`, which it would not call. "
                "Remove them, or train with autograd."
            )
        if (p.dtype, p.device) != (parameters[0].dtype, parameters[0].device):
            raise ValueError(
                f"TrainStep expected parameters of one dtype on one device, got {parameters[0].dtype} on {parameters[0].device} "
                f"for `{names[0]}` and {p.dtype} on {p.device} for `{name}`. Convert the model with model.to(...)."
            )
    spans = sorted((*_span(p), name) for p, name in zip(parameters, names, strict=True) if p.numel())
    for (_, end, first), (start, _, second) in zip(spans, spans[1:], strict=False):
        if start < end:
            raise ValueError(
                f"TrainStep expected every weight to have memory of its own, got `{min(first, second)}` and "
                f"`{max(first, second)}`, which are tied. Untie them, or train with autograd."
            )


def _span(p: Tensor) -> tuple[int, int]:
    """The first byte of a parameter and the one after its last."""
    length = 1 + sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
    return p.data_ptr(), p.data_ptr() + length * p.element_size()
