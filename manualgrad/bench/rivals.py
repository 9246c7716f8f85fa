"""One training step of one net, in each of the ways that are compared. All start from the same weights.

A step is everything between two batches: zero_grad, forward, loss, backward, clipping if asked for, and the update.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.bench.other_libraries import with_jax, with_sklearn
from manualgrad.bench.problem import Problem, Way, train_step, weights_of


MAX_NORM = 0.01  # below the norm of the first gradients, so that clipping does scale them
OURS = ("manualgrad", "manualgrad, dense gradients")
BEST_OF_AUTOGRAD = {"SGD loop": {"foreach": False}, "SGD foreach": {"foreach": True}, "SGD fused": {"fused": True}}
RIVALS = (*BEST_OF_AUTOGRAD, "optimizer in backward", "torch.compile")
CANNOT_CLIP = ("optimizer in backward",)
OTHERS = {"JAX jit": with_jax, "scikit-learn": with_sklearn}
TRAIN_STEP = ("TrainStep", *BEST_OF_AUTOGRAD, "torch.compile", *OTHERS)  # of `bench --train-step`


def make(name: str, problem: Problem) -> Way:
    """The way of that name.

    Raises:
        ValueError: no such name, or the way cannot clip.
        ImportError: its package is not installed.
    """
    if name not in (*OURS, *RIVALS, *TRAIN_STEP):
        raise ValueError(f"Expected a way to train, one of {', '.join((*OURS, *RIVALS))}; got {name!r}.")
    if problem.clip and name in CANNOT_CLIP:
        raise ValueError(
            f"{name!r} expected no clipping, got clip=True: the global norm is known only after the backward pass. "
            "Measure it without."
        )
    if name in OTHERS:
        return OTHERS[name](problem)
    if name == "TrainStep":
        return train_step(problem, problem.dense())
    model = problem.dense() if name in OURS else problem.plain()
    inputs, targets = problem.batch()
    if name in OURS:
        descent = mg.GradientDescent(model.parameters(), lr=problem.lr, factored=name == "manualgrad")
        step = _loop(model, descent, problem)
    elif name == "optimizer in backward":
        step = _in_backward(model, problem)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr, **BEST_OF_AUTOGRAD.get(name, {}))
        step = _loop(model, optimizer, problem, compiled=name == "torch.compile")
    return Way(partial(step, inputs, targets), partial(weights_of, model), model)


def _loop(
    model: nn.Module, optimizer: torch.optim.Optimizer, problem: Problem, compiled: bool = False
) -> Callable[[Tensor, Tensor], None]:
    """The loop that everybody writes: zero_grad, forward, backward, clip, step. `compiled`: forward, loss and backward as one,
    clipping and the optimizer's step as another."""
    parameters = list(model.parameters())

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return problem.loss(model(inputs), targets)

    def update() -> None:
        if problem.clip:
            nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()

    if compiled:
        loss, update = torch.compile(loss, dynamic=False), torch.compile(update, dynamic=False)

    def step(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        loss(inputs, targets).backward()
        update()

    return step


def _in_backward(model: nn.Module, problem: Problem) -> Callable[[Tensor, Tensor], None]:
    """The update inside the backward pass, each gradient freed at once. It cannot clip by the global norm."""
    for parameter in model.parameters():
        optimizer = torch.optim.SGD([parameter], lr=problem.lr, foreach=False)

        def update(parameter: Tensor, optimizer: torch.optim.SGD = optimizer) -> None:
            optimizer.step()
            parameter.grad = None

        parameter.register_post_accumulate_grad_hook(update)

    def step(inputs: Tensor, targets: Tensor) -> None:
        problem.loss(model(inputs), targets).backward()

    return step
