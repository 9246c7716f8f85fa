"""One training step of one net, in each of the ways that are compared. All start from the same weights.

A step is everything between two batches: zero_grad, forward, loss, backward, clipping if asked for, and the update.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import manualgrad as mg


LEARNING_RATE = 0.1
MAX_NORM = 0.01  # below the norm of the first gradients, so that clipping does scale them
Step = Callable[[Tensor, Tensor], Any]
LOSS = nn.MSELoss()  # the same for everybody

TORCH_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),  # saves autograd a tensor per layer; the others cannot
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


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


def loop(model: nn.Module, optimizer: torch.optim.Optimizer, clip: bool) -> Step:
    """The loop that everybody writes: zero_grad, forward, backward, clip, step."""
    parameters = list(model.parameters())

    def step(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        LOSS(model(inputs), targets).backward()
        if clip:
            nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()

    return step


def compiled(model: nn.Module, clip: bool) -> Step:
    """Forward, loss and backward compiled as one, clipping and the optimizer's step as another."""
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE)

    @torch.compile(dynamic=False)
    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return LOSS(model(inputs), targets)

    @torch.compile(dynamic=False)
    def update() -> None:
        if clip:
            nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()

    def step(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        loss(inputs, targets).backward()
        update()

    return step


def in_backward(model: nn.Module) -> Step:
    """The update inside of the backward pass, each gradient freed at once. It cannot clip by the global norm."""
    for parameter in model.parameters():
        optimizer = torch.optim.SGD([parameter], lr=LEARNING_RATE, foreach=False)

        def update(parameter: Tensor, optimizer: torch.optim.SGD = optimizer) -> None:
            optimizer.step()
            parameter.grad = None

        parameter.register_post_accumulate_grad_hook(update)

    def step(inputs: Tensor, targets: Tensor) -> None:
        LOSS(model(inputs), targets).backward()

    return step


OURS = ("manualgrad", "manualgrad, dense gradients")
BEST_OF_AUTOGRAD = ("SGD loop", "SGD foreach", "SGD fused")
RIVALS = (*BEST_OF_AUTOGRAD, "optimizer in backward", "torch.compile")
CANNOT_CLIP = ("optimizer in backward",)


def make(name: str, sizes: list[int], activation: str, device: str, clip: bool) -> tuple[nn.Module, Step]:
    """The model and the step of that name.

    Raises:
        ValueError: no such name, or the way cannot clip.
    """
    if name in OURS:
        dense = dense_model(sizes, activation, device)
        descent = mg.GradientDescent(dense.parameters(), lr=LEARNING_RATE, factored=name == "manualgrad")
        return dense, loop(dense, descent, clip)
    if name not in RIVALS:
        raise ValueError(f"Expected a way to train, one of {', '.join((*OURS, *RIVALS))}; got {name!r}.")
    if clip and name in CANNOT_CLIP:
        raise ValueError(
            f"{name!r} expected no clipping, got clip=True: the global norm is known only after the backward pass. "
            "Measure it without."
        )
    plain = plain_model(sizes, activation, device)
    if name == "torch.compile":
        return plain, compiled(plain, clip)
    if name == "optimizer in backward":
        return plain, in_backward(plain)
    options = {"SGD loop": {"foreach": False}, "SGD foreach": {"foreach": True}, "SGD fused": {"fused": True}}
    return plain, loop(plain, torch.optim.SGD(plain.parameters(), lr=LEARNING_RATE, **options[name]), clip)
