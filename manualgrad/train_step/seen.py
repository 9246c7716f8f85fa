"""What a training step has read of a model and a loss, and whether all of it is still so."""

from __future__ import annotations

from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn

from manualgrad.autograd.torch_state import has_hooks, hooks_of_every_module, hooks_of_module


class Seen:
    """The modules, their attributes and their parameters, as they were when the step was made."""

    def __init__(self) -> None:
        self._modules: list[nn.Module] = []
        self._hooks: list[dict] = hooks_of_every_module()
        self._objects: list[tuple[dict, str, Any, str]] = []  # where each thing that was read lies, and whose it is
        self._children: list[tuple[dict, list[str]]] = []
        if any(self._hooks):
            raise TypeError(
                _without_hooks("modules", "some for all modules (torch.nn.modules.module.register_module_...)")
            )

    def enter(self, module: nn.Module, called: str) -> None:
        """Watch a module. Raises TypeError where it is called otherwise than its class says."""
        hooks = hooks_of_module(module)
        if any(hooks) or "forward" in module.__dict__:
            raise TypeError(_without_hooks("modules", f"some on {called}"))
        if type(module).__call__ is not nn.Module.__call__:
            raise TypeError(
                f"TrainStep expected modules that are called as nn.Module is, got {called} with a `__call__` of its own. "
                "Train this model with autograd."
            )
        self._hooks += hooks
        self._modules.append(module)
        self._objects.append((module.__dict__, "forward", None, "model or its loss"))

    def read(self, where: dict, key: str, of: str = "model") -> Any:
        """Watch what lies there, or that nothing does, and return it."""
        self._objects.append((where, key, where.get(key), of))
        return where.get(key)

    def keys_of(self, where: dict) -> None:
        """Watch which keys a table has, and in which order."""
        self._children.append((where, [*where]))

    def memory_of(self, parameters: list[nn.Parameter], names: list[str]) -> None:
        """Watch where the parameters lie. The last thing to be said before the first `check`."""
        self._parameters, self._names = parameters, names
        self._memory = [p.detach() for p in parameters]  # held, so that nothing else can come to lie at the address
        self._layouts = _layouts(parameters)
        self._places, self._keys, self._things, _ = zip(*self._objects, strict=True)
        self._classes = [*map(type, self._modules)]
        self._distinct = [*{*self._classes}]
        self._calls = [*map(_calls, self._distinct)]

    def check(self) -> None:
        """Raises RuntimeError if a module, parameter or setting is no longer the one, or not where, it was."""
        # At every step: hence maps, which call no Python.
        if not all(map(is_, map(dict.get, self._places, self._keys), self._things)):
            what = [
                f"`{key}` of the {owner}" for place, key, thing, owner in self._objects if place.get(key) is not thing
            ]
            raise RuntimeError(_changed(f"{(what or ['something'])[0]} was replaced"))
        if any(self._hooks):
            raise RuntimeError(_changed("a hook was added to the model, which TrainStep would not call"))
        if has_hooks(self._parameters):
            raise RuntimeError(_changed("a hook was added to a parameter, which TrainStep would not call"))
        if [*map(type, self._modules)] != self._classes or [*map(_calls, self._distinct)] != self._calls:
            raise RuntimeError(_changed("the class of a module, or its `forward`, was replaced"))
        if _layouts(self._parameters) != self._layouts:
            self._check_memory()
        for where, keys in self._children:
            if [*where] != keys:
                was_added = len(where) > len(keys)
                raise RuntimeError(
                    _changed(f"{'a layer was added to' if was_added else 'the layers were reordered in'} the model")
                )

    def _check_memory(self) -> None:
        for name, p, memory in zip(self._names, self._parameters, self._memory, strict=True):
            if _layouts([p]) != _layouts([memory]):
                raise RuntimeError(_changed(f"the parameter `{name}` was moved or reallocated"))
        self._layouts = _layouts(self._parameters)  # share_memory(): all that shares the memory has moved with it


_calls = attrgetter("forward", "__call__")  # of a class


def _layouts(parameters: list[nn.Parameter] | list[Tensor]) -> list[Any]:
    """Where the parameters lie, and how: other sizes or strides can begin at the same address."""
    return [
        *map(Tensor.data_ptr, parameters),
        *map(Tensor.size, parameters),
        *map(Tensor.stride, parameters),
    ]


def _without_hooks(what: str, came: str) -> str:
    return (
        f"TrainStep expected {what} without hooks, got {came}, which it would not call. "
        "Remove them, or train with autograd."
    )


def _changed(what: str) -> str:
    return (
        f"TrainStep expected the model that it was made for, but {what}. Nothing was updated. "
        "Make a new one: mg.TrainStep(model, loss, optimizer)."
    )


def check_parameters(parameters: list[nn.Parameter], names: list[str]) -> None:
    if not parameters:
        raise ValueError("TrainStep expected a model with weights, got one without. Give it a Dense layer.")
    for p, name in zip(parameters, names, strict=True):
        if type(p) is not nn.Parameter or p.is_meta or not p.is_floating_point() or p.layout != torch.strided:
            raise TypeError(
                f"TrainStep expected plain real floating point parameters, got `{name}`, a {type(p).__name__} of {p.dtype} "
                f"on {p.device}. Convert or materialise it first, or train with autograd."
            )
        if has_hooks([p]):
            raise TypeError(_without_hooks("parameters", f"some on `{name}`"))
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
