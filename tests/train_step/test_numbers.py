"""Numbers that follow the optimizer's options from step to step, in whatever guise they come."""

from __future__ import annotations

import copy
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from tests.train_step.trainings import assert_same, autograd_step, batches, plain


class Pair:
    """The same net trained by TrainStep and by autograd with `torch.optim.SGD`."""

    def __init__(self, sizes: list[int], max_norm: float | None = None, **options: Any) -> None:
        self.model = mg.MLP(sizes, "tanh", dtype=torch.float64)
        self.twin = copy.deepcopy(self.model)
        self.ours = mg.GradientDescent(self.model.parameters(), **options)
        self.sgd = torch.optim.SGD(self.twin.parameters(), **options)
        self.step = mg.TrainStep(self.model, nn.MSELoss(), self.ours, max_norm=max_norm)
        self.max_norm = max_norm

    def take(self, x: Tensor, y: Tensor) -> None:
        self.step(x, y)
        self.sgd.zero_grad()
        nn.functional.mse_loss(self.twin(x), y).backward()
        if self.max_norm is not None:
            nn.utils.clip_grad_norm_(self.twin.parameters(), self.max_norm)
        self.sgd.step()

    def assert_same(self) -> None:
        torch.testing.assert_close(self.model.state_dict(), self.twin.state_dict(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [2, 7, 30])
def test_momentum_that_a_schedule_changes_while_gradients_are_clipped(rows: int) -> None:
    pair = Pair([8, 16, 3], max_norm=1.0, lr=0.1, momentum=0.9)
    schedules = [torch.optim.lr_scheduler.OneCycleLR(o, 0.5, total_steps=60) for o in (pair.ours, pair.sgd)]
    for _ in range(50):
        pair.take(torch.randn(rows, 8).double(), 3 * torch.randn(rows, 3).double())
        for schedule in schedules:
            schedule.step()
    pair.assert_same()


NUMBERS: dict[str, list[Any]] = {
    "float32": list(np.linspace(0.05, 0.4, 8, dtype=np.float32)),
    "int64": [np.int64(0), np.int64(1), np.int64(0), np.int64(1)],
    "fractions": [Fraction(1, k) for k in range(3, 10)],
    "tensors": [torch.tensor(0.1 * k, dtype=torch.float64) for k in range(1, 6)],
    "integers": [0, 1, 0, 1],
}


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "dampening"])
@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_numbers_that_are_not_pythons(kind: str, name: str, max_norm: float | None) -> None:
    if kind == "tensors" and name != "lr":
        pytest.skip("GradientDescent takes a tensor for the learning rate alone")
    pair = Pair([8, 16, 3], max_norm, lr=0.1, momentum=0.9)
    for number in NUMBERS[kind]:
        pair.ours.param_groups[0][name] = number
        pair.sgd.param_groups[0][name] = float(number)
        pair.take(torch.randn(5, 8).double(), torch.randn(5, 3).double())
    pair.assert_same()


def test_a_rate_that_is_changed_in_place() -> None:
    pair = Pair([8, 16, 3], lr=torch.tensor(0.1, dtype=torch.float64))
    for k in range(6):
        for optimizer in (pair.ours, pair.sgd):
            optimizer.param_groups[0]["lr"].fill_(0.1 / (1 + k))
        pair.take(torch.randn(5, 8).double(), torch.randn(5, 3).double())
    pair.assert_same()


@pytest.mark.parametrize("given", [Fraction(1, 2), np.float32(0.5), np.float64(0.5), torch.tensor(0.5), 0.5])
def test_max_norm_in_any_guise(given: Any) -> None:
    pair = Pair([8, 16, 3], max_norm=0.5, lr=0.1)
    pair.step.max_norm = given
    for _ in range(3):
        pair.take(torch.randn(5, 8).double(), 9 * torch.randn(5, 3).double())
    pair.assert_same()


@pytest.mark.parametrize("sizes", [[8, 16, 3], [8, 512, 512, 3]])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_every_step_counts_as_a_change_of_weights_and_v(sizes: list[int], max_norm: float | None) -> None:
    model = mg.MLP(sizes)
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1, momentum=0.9)
    step = mg.TrainStep(model, nn.MSELoss(), optimizer, max_norm=max_norm)
    for i in range(4):
        held = [*model.parameters(), *(optimizer.state[p]["momentum_buffer"] for p in model.parameters() if i)]
        before = [t._version for t in held]
        step(torch.randn(2, 8), torch.randn(2, 3))
        assert all(t._version > was for t, was in zip(held, before, strict=True))


def test_options_that_change_at_every_step() -> None:
    model = mg.MLP([6, 20, 4], dtype=torch.float64)
    reference = plain(model)
    ours = mg.GradientDescent(model.parameters(), lr=0.1, momentum=0.9)
    sgd = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    schedules = [torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=60) for o in (ours, sgd)]
    step = mg.TrainStep(model, nn.MSELoss(), ours)
    for x, y in batches(59):
        step(x, y)
        autograd_step(reference, nn.MSELoss(), sgd, x, y)
        for schedule in schedules:
            schedule.step()
    assert_same(model, reference)


def test_options_that_come_and_go() -> None:
    model = mg.MLP([6, 5, 4], dtype=torch.float64)
    reference = plain(model)
    ours = mg.GradientDescent(model.parameters(), lr=0.1, momentum=0.9)
    sgd = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    step = mg.TrainStep(model, mg.QuadraticLoss(), ours)
    changes: list[dict[str, Any]] = [
        {"lr": 0.0},
        {"lr": 0.02, "weight_decay": 0.1},
        {"nesterov": True, "momentum": 0.5},
        {"weight_decay": 0},
        {"lr": 0.1, "momentum": 0.02},
        {"nesterov": False, "dampening": 0.5},
    ]
    for i, (x, y) in enumerate(batches(60)):
        if i % 10 == 9:
            for optimizer in (ours, sgd):
                optimizer.param_groups[0].update(changes[i // 10])
        step(x, y)
        autograd_step(reference, mg.QuadraticLoss(), sgd, x, y)
    assert_same(model, reference)
