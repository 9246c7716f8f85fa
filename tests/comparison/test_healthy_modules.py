"""No false alarm on healthy modules of PyTorch, in training and evaluation, and every planted bug is found: a seeded handful of
what was tried on more than fifty modules in ten seeds each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from manualgrad import equations


class Sequence(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.body, self.head = kind(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])


class Averaged(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))


def tower(norm: Callable[[], nn.Module], sigma: type[nn.Module]) -> nn.Module:
    layers = [module for _ in range(3) for module in (nn.Linear(6, 6), norm(), sigma())]
    return nn.Sequential(*layers, nn.Linear(6, 3))


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch norm": (lambda: tower(lambda: nn.BatchNorm1d(6), nn.ReLU), (6,)),
    "layer norm": (lambda: tower(lambda: nn.LayerNorm(6), nn.GELU), (6,)),
    "group norm": (lambda: tower(lambda: nn.GroupNorm(2, 6), nn.Tanh), (6,)),
    "deep relu": (lambda: mg.MLP([6, *[24] * 10, 3], "relu"), (6,)),
    "deep tanh": (lambda: mg.MLP([6, *[16] * 16, 3], "tanh"), (6,)),
    "dropout": (lambda: tower(lambda: nn.Dropout(0.3), nn.SiLU), (6,)),
    "convolutions": (
        lambda: nn.Sequential(nn.Conv1d(6, 4, 3), nn.InstanceNorm1d(4), nn.Flatten(), nn.Linear(12, 3)),
        (6, 5),
    ),
    "LSTM": (lambda: Sequence(nn.LSTM), (5, 6)),
    "GRU": (lambda: Sequence(nn.GRU), (5, 6)),
    "encoder": (lambda: Averaged(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), (5, 8)),
}


@pytest.mark.parametrize("make, shape", MODULES.values(), ids=MODULES.keys())
def test_no_false_alarm(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    for seed, rows in enumerate((2, 7, 64)):
        torch.manual_seed(seed)
        model = mg.convert(make()).train(seed != 1)
        for loss in (nn.CrossEntropyLoss(), mg.SoftmaxCrossEntropyLoss()):
            comparison = mg.compare(model, loss, torch.randn(rows, *shape), torch.randint(3, (rows,)))
            assert comparison.ok, str(comparison)


BUGS: dict[str, tuple[str, Callable[..., Any]]] = {
    "a mean": ("weight_gradient", lambda right, delta, a: right(delta, a) / len(delta)),
    "a lost row": ("weight_gradient", lambda right, delta, a: right(delta[:-1], a[:-1])),
    "factors in bfloat16": ("weight_gradient", lambda right, delta, a: right(delta.bfloat16().float(), a)),
    "a factor of 1.0001": ("weight_gradient", lambda right, delta, a: 1.0001 * right(delta, a)),
    "the first row": ("bias_gradient", lambda right, delta: delta[0].clone()),
    "a bias in bfloat16": ("bias_gradient", lambda right, delta: right(delta).bfloat16().float()),
    "a factor of 1.001": ("backpropagated_error", lambda right, weight, delta: 1.001 * right(weight, delta)),
    "no derivative": ("output_error", lambda right, gradient, sigma, kept: gradient.clone()),
}


@pytest.mark.parametrize("equation, wrong", BUGS.values(), ids=BUGS.keys())
def test_a_planted_bug_is_found(equation: str, wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(equations, equation)
    monkeypatch.setattr(equations, equation, lambda *arguments: wrong(right, *arguments))
    for seed, rows in enumerate((5, 32)):
        torch.manual_seed(seed)
        model = nn.Sequential(
            mg.Dense(6, 12, activation="gelu"), nn.BatchNorm1d(12), mg.Dense(12, 3, activation="tanh")
        )
        comparison = mg.compare(model, nn.MSELoss(), torch.randn(rows, 6), torch.randn(rows, 3))
        assert not comparison.ok, str(comparison)
