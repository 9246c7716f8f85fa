"""What an exercise is, and what turns a student's function into something that `mg.check_backward` can judge."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

import manualgrad as mg


Function = Callable[..., Any]


class Wrong(Exception):
    """A sentence for the student. `not_written`: there is nothing to judge yet."""

    def __init__(self, sentence: str, not_written: bool = False) -> None:
        super().__init__(sentence)
        self.not_written = not_written


@dataclass(frozen=True)
class Exercise:
    """`layer` puts the student's function where a training step needs it; `reference` computes the same by PyTorch.

    Both are called with `inputs`. `names` are what the student calls the gradients by these inputs, or the outputs.
    """

    solution: Function  # whose name the student's function has
    inputs: tuple[Tensor, ...]
    layer: Callable[[Function], Function]
    reference: Function
    names: tuple[str, ...]
    mistakes: Mapping[str, Function]  # the sentence, and what somebody writes who makes the mistake
    is_backward: bool = True  # else the outputs are judged
    tolerance: float = 0.0  # for what is right only nearly; else check_backward judges

    @property
    def right(self) -> str:
        return (
            "autograd and finite differences give the same gradients."
            if self.is_backward
            else "these are PyTorch's own numbers."
        )


def given(function: Function, *arguments: Any) -> Any:
    """What the student's function returns for copies of the arguments. Raises Wrong if it changes them or returns nothing."""
    copies = tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, arguments)
    result = function(*copies)
    parts = result if isinstance(result, tuple | list) else [result]
    if any(part is None or part is ... for part in parts):
        raise Wrong("Not written yet: the function returns nothing. Replace the ... by your code, with a return.", True)
    for part in parts:
        if not isinstance(part, Tensor | float | int):
            raise Wrong(f"Your function returns a {type(part).__name__}, expected a tensor.")
    for name, before, after in zip(inspect.signature(function).parameters, arguments, copies, strict=False):
        if any(
            isinstance(x, Tensor) and not torch.allclose(x, y, rtol=1e-9, atol=1e-12)
            for x, y in zip(tree_leaves(before), tree_leaves(after), strict=True)
        ):
            raise Wrong(
                f"Your function changes its argument {name}, which its caller still needs: make a new tensor instead of "
                f"writing into {name} with -=, += or {name}[...] =."
            )
    return tree_map(lambda x: x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64), result)


def by_hand(forward: Function, backward: Function, names: tuple[str, ...] = ()) -> Function:
    """The forward pass with this backward pass: (upstream gradient, *inputs) -> a gradient for each input."""

    class ByHand(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Tensor:
            ctx.save_for_backward(*inputs)
            return forward(*inputs)

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> Any:
            found = backward(upstream, *ctx.saved_tensors)
            if len(found) != len(ctx.saved_tensors):
                raise Wrong(f"Your function returns {len(found)} tensors, expected {len(names)}: {', '.join(names)}.")
            for name, x, like in zip(names, found, ctx.saved_tensors, strict=True):
                if x.shape != like.shape:
                    raise Wrong(
                        f"{name} has shape {tuple(x.shape)}, expected {tuple(like.shape)}, the shape of what it is the slope by."
                    )
            return found

    return ByHand.apply


def output(function: Function) -> Function:
    """The student's function itself."""
    return lambda *arguments: given(function, *arguments)


def numbers(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Of another size along each axis, so that a missing transpose cannot hide."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)


def sigmoid_slope(z: Tensor) -> Tensor:
    return torch.sigmoid(z) * (1 - torch.sigmoid(z))


def quadratic(a: Tensor, y: Tensor) -> Tensor:
    return 0.5 * ((a - y) ** 2).sum(1).mean()


def with_slope(sigma: Function) -> Callable[[Function], Function]:
    """A dense layer with that activation and the student's derivative."""

    def layer(function: Function) -> Function:
        activation = mg.Activation("yours", sigma, lambda z: given(function, z))
        return lambda a, w, b: mg.dense(a, w, b, activation=activation)

    return layer


OF_LAYER = (
    "dC/da, of the layer with your slope,",
    "dC/dw, of the layer with your slope,",
    "dC/db, of the layer with your slope,",
)


A, W, B = numbers((5, 3), (4, 3), (4,))  # of a layer: its inputs, weights and biases
Z, Y = numbers((5, 3), (5, 3))
