"""What lets a training step run beside the real one and change nothing: copies without history, random states put back."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def each_tensor(function: Callable[[Tensor], Tensor], x: Any) -> Any:
    """`function` of every tensor in `x`, through tuples, lists and dicts."""
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(each_tensor(function, item) for item in x))
    if isinstance(x, tuple | list):
        return type(x)(each_tensor(function, item) for item in x)
    if isinstance(x, dict):
        return {key: each_tensor(function, item) for key, item in x.items()}
    return x


def copied(x: Tensor) -> Tensor:
    """A copy without history; also out of inference mode, where autograd could not use it."""
    return x.detach().clone()


def deep_copied(module: ModuleT, memo: dict[int, Any] | None = None) -> ModuleT:
    """`copy.deepcopy`, which refuses tensors with a history: what a module keeps of these, such as its last output, loses it."""
    memo = {} if memo is None else memo
    for part in module.modules():
        for kept in vars(part).values():
            inside = kept.values() if isinstance(kept, dict) else kept if isinstance(kept, list | tuple) else (kept,)
            memo |= {id(x): copied(x) for x in inside if isinstance(x, Tensor) and not x.is_leaf}
    return copy.deepcopy(module, memo)


def check_loss_function(loss: Any, caller: str) -> None:
    """Raises TypeError unless `loss` can be called with outputs and targets: a loss's class makes one out of them instead."""
    came, advice = repr(loss), "Pass for example mg.QuadraticLoss()."
    if isinstance(loss, Tensor):
        came = f"a tensor of shape {tuple(loss.shape)}"
        advice = f"The order is {caller}(model, loss, inputs, targets)."
    elif isinstance(loss, type):
        came = f"the class {loss.__name__}"
        is_function = issubclass(loss, torch.autograd.Function)
        advice = f"Pass {loss.__name__}.apply." if is_function else f"Make an instance: {loss.__name__}()."
    elif callable(loss):
        return
    raise TypeError(f"{caller} expected `loss` to be a function of outputs and targets, got {came}. {advice}")


def checked_loss(value: Any, caller: str) -> Tensor:
    """The loss as it is. Raises ValueError unless it is a real 0-dimensional tensor."""
    if not isinstance(value, Tensor) or value.dim() != 0 or value.is_complex():
        came = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{caller} expected the loss to be a real 0-dimensional tensor, got {came}. Average it, for example with .mean()."
        )
    return value


def leaves(value: Tensor) -> Iterator[Tensor]:
    """The tensors into whose `grad` a backward pass from `value` would write."""
    nodes, seen = [value.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        nodes += [parent for parent, _ in node.next_functions]


class RandomStates:
    """Keeps the random states of torch, the model's devices included, Python and NumPy; `rewind` goes back to the start."""

    def __init__(self, model: nn.Module) -> None:
        self.devices = {p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}

    def __enter__(self) -> RandomStates:
        self.python = random.getstate()
        self.cpu = torch.random.get_rng_state()
        self.others = {device: torch.get_device_module(device).get_rng_state(device) for device in self.devices}
        self.numpy = sys.modules.get("numpy.random")  # None: nobody has imported it, so nobody draws from it
        self.numpy_state = None if self.numpy is None else self.numpy.get_state()
        return self

    def rewind(self) -> None:
        random.setstate(self.python)
        torch.random.set_rng_state(self.cpu)
        for device, state in self.others.items():
            torch.get_device_module(device).set_rng_state(state, device)
        if self.numpy is not None:
            self.numpy.set_state(self.numpy_state)

    def __exit__(self, *exception: object) -> None:
        self.rewind()
