"""What is trained in a measurement, and what every way to train it must offer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import manualgrad as mg


TORCH_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),  # saves autograd a tensor per layer; the others cannot
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


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


def train_step(problem: Problem, model: nn.Module) -> Way:
    """`TrainStep` on this model."""
    loss = mg.QuadraticLoss() if problem.is_closed else nn.MSELoss()
    step = mg.TrainStep(model, loss, mg.GradientDescent(model.parameters(), lr=problem.lr))
    return Way(partial(step, *problem.batch()), partial(weights_of, model), model)


def weights_of(model: nn.Module) -> list[Tensor]:
    """Its parameters, as tensors that go on changing."""
    return [p.detach() for p in model.parameters()]
