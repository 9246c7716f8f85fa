"""One training step of one net, in each of the ways that are compared. All start from the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import manualgrad as mg


LEARNING_RATE = 1e-3
Step = Callable[[Tensor, Tensor], Any]
LOSS = nn.MSELoss()  # the same for everybody

TORCH_ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


def plain_model(sizes: list[int], activation: str, device: str) -> nn.Sequential:
    """nn.Linear and activation modules, from seed 0."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n, m in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(n, m, device=device), TORCH_ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def dense_model(sizes: list[int], activation: str, device: str) -> mg.MLP:
    """The same net of `Dense` layers, with the same weights."""
    torch.manual_seed(0)
    return mg.MLP(sizes, activation, device=device)


def loop(model: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float | None) -> Step:
    """The loop that everybody writes: zero_grad, forward, backward, clip, step."""
    parameters = list(model.parameters())

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = LOSS(model(inputs), targets)
        loss.backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        return loss

    return step


def compiled(model: nn.Module, max_norm: float | None) -> Step:
    """Forward and backward compiled, the optimizer's step compiled by itself, as PyTorch's tutorial has it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    compiled_step = torch.compile(optimizer.step)
    forward = torch.compile(model, dynamic=False)
    parameters = list(model.parameters())

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = LOSS(forward(inputs), targets)
        loss.backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(parameters, max_norm)
        compiled_step()
        return loss

    return step


def in_backward(model: nn.Module) -> Step:
    """The update inside of the backward pass, each gradient freed at once. It cannot clip by the global norm."""
    for parameter in model.parameters():
        optimizer = torch.optim.SGD([parameter], lr=LEARNING_RATE, foreach=False)

        def update(parameter: Tensor, optimizer: torch.optim.SGD = optimizer) -> None:
            optimizer.step()
            parameter.grad = None

        parameter.register_post_accumulate_grad_hook(update)

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        loss = LOSS(model(inputs), targets)
        loss.backward()
        return loss

    return step


OURS = ("manualgrad", "manualgrad, dense gradients")
BEST_OF_AUTOGRAD = ("SGD loop", "SGD foreach", "SGD fused")
RIVALS = (*BEST_OF_AUTOGRAD, "optimizer in backward", "torch.compile")


def make(name: str, sizes: list[int], activation: str, device: str, max_norm: float | None) -> tuple[nn.Module, Step]:
    """The model and the step of that name.

    Raises:
        ValueError: no such name, or the way cannot clip.
    """
    if name in OURS:
        dense = dense_model(sizes, activation, device)
        descent = mg.GradientDescent(dense.parameters(), lr=LEARNING_RATE, factored=name == "manualgrad")
        return dense, loop(dense, descent, max_norm)
    plain = plain_model(sizes, activation, device)
    if name == "torch.compile":
        return plain, compiled(plain, max_norm)
    if name == "optimizer in backward" and max_norm is None:
        return plain, in_backward(plain)
    options = {"SGD loop": {"foreach": False}, "SGD foreach": {"foreach": True}, "SGD fused": {"fused": True}}
    if name not in options:
        raise ValueError(
            f"Expected one of {', '.join((*OURS, *RIVALS))}, got {name!r} with max_norm={max_norm}. "
            "The optimizer in the backward pass cannot clip by the global norm."
        )
    return plain, loop(plain, torch.optim.SGD(plain.parameters(), lr=LEARNING_RATE, **options[name]), max_norm)
