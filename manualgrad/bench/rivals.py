"""One training step of one net, in each of the ways that are compared. All start from the same weights.

A step is everything between two batches: zero_grad, forward, loss, backward, clipping if asked for, and the update.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import manualgrad as mg


MAX_NORM = 0.01  # below the norm of the first gradients, so that clipping does scale them
TORCH_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),  # saves autograd a tensor per layer; the others cannot
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}

OURS = ("manualgrad", "manualgrad, dense gradients")
BEST_OF_AUTOGRAD = {"SGD loop": {"foreach": False}, "SGD foreach": {"foreach": True}, "SGD fused": {"fused": True}}
RIVALS = (*BEST_OF_AUTOGRAD, "optimizer in backward", "torch.compile")
CANNOT_CLIP = ("optimizer in backward",)
TRAIN_STEP = ("TrainStep", *BEST_OF_AUTOGRAD, "torch.compile", "JAX jit", "scikit-learn")  # of `bench --train-step`


class Problem(NamedTuple):
    """What is trained: a net, its batch and its loss, the same for every way.

    Args:
        is_closed: sigma stands on the last layer too, and the loss is the quadratic one, as `TrainStep` is measured; otherwise
            the last layer is open, and the loss is nn.MSELoss.
    """

    sizes: list[int]
    activation: str
    rows: int
    clip: bool = False
    device: str = "cpu"
    is_closed: bool = False

    @property
    def lr(self) -> float:
        return 0.001 if self.is_closed else 0.1

    def batch(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.rows)
        inputs = torch.randn(self.rows, self.sizes[0], generator=generator).to(self.device)
        targets = torch.rand if self.is_closed else torch.randn
        return inputs, targets(self.rows, self.sizes[-1], generator=generator).to(self.device)

    def plain(self) -> nn.Sequential:
        """The net of nn.Linear and activation modules, from seed 0."""
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for n, m in zip(self.sizes[:-1], self.sizes[1:], strict=True):
            layers += [nn.Linear(n, m, device=self.device), TORCH_ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers[: None if self.is_closed else -1])

    def dense(self) -> mg.MLP:
        """The net of `Dense` layers, with the same weights."""
        torch.manual_seed(0)
        last = self.activation if self.is_closed else None
        return mg.MLP(self.sizes, self.activation, output_activation=last, device=self.device)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.is_closed:
            return 0.5 * nn.functional.mse_loss(outputs, targets, reduction="sum") / len(outputs)
        return nn.functional.mse_loss(outputs, targets)


class Way(NamedTuple):
    """One way to take the step. `weights` gives what they have become, in the order of `model.parameters()`."""

    step: Callable[[], Any]
    weights: Callable[[], list[Tensor]]
    model: nn.Module | None = None
    expected: Way | None = None  # whose weights it should reach, if not those of the first way


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
    if name in ("JAX jit", "scikit-learn"):
        from manualgrad.bench.other_libraries import with_jax, with_sklearn

        return with_jax(problem) if name == "JAX jit" else with_sklearn(problem)
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
    return Way(partial(step, inputs, targets), partial(_weights, model), model)


def train_step(problem: Problem, model: nn.Module) -> Way:
    """`TrainStep` on this model."""
    loss = mg.QuadraticLoss() if problem.is_closed else nn.MSELoss()
    step = mg.TrainStep(model, loss, mg.GradientDescent(model.parameters(), lr=problem.lr))
    return Way(partial(step, *problem.batch()), partial(_weights, model), model)


def _weights(model: nn.Module) -> list[Tensor]:
    return [p.detach() for p in model.parameters()]


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
