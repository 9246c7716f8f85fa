"""The monitor's numbers, against autograd's and against the weights themselves."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import manualgrad as mg
from manualgrad.lightning import BackpropMonitor
from tests.lightning.monitor.watched import Regression, Weights, data, filled, net, scaled, watched


def by_autograd(module: Regression, x: Tensor, y: Tensor) -> dict[str, tuple[float, float]]:
    """|delta| and |dC/dw| of each layer, with z a leaf of autograd's graph."""
    layers = [layer for layer in module.modules() if isinstance(layer, mg.Dense)]
    a, zs = x, []
    for layer in layers:
        z = nn.functional.linear(a, layer.weight, layer.bias)
        z.retain_grad()
        zs.append(z)
        a = layer.activation.value(z)
    gradients = torch.autograd.grad(nn.functional.mse_loss(a, y), [*zs, *(layer.weight for layer in layers)])
    deltas, weight_gradients = gradients[: len(zs)], gradients[len(zs) :]
    return {
        f"model.{i}": (delta.norm().item(), gradient.norm().item())
        for i, (delta, gradient) in enumerate(zip(deltas, weight_gradients, strict=True))
    }


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (mg.GradientDescent, {}),
    "momentum": (mg.GradientDescent, {"momentum": 0.9, "dampening": 0.5}),
    "maximize": (mg.GradientDescent, {"maximize": True}),
    "nesterov": (mg.GradientDescent, {"momentum": 0.9, "nesterov": True}),
    "decay": (mg.GradientDescent, {"weight_decay": 0.1}),
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "AdamW": (torch.optim.AdamW, {}),
}


@pytest.mark.parametrize(
    ("optimizer", "clip"),
    [*((name, None) for name in OPTIMIZERS), ("plain", 0.01), ("momentum", 0.01), ("AdamW", 0.01)],  # w copied or not
)
def test_the_numbers_are_those_of_autograd_and_of_the_weights(
    tmp_path: Path, optimizer: str, clip: float | None
) -> None:
    make, options = OPTIMIZERS[optimizer]
    module = Regression(net("sigmoid", "gelu", "relu", None), make, **options)
    expected = by_autograd(module, *next(iter(data())))
    seen = Weights()
    monitor = watched(tmp_path, module, callbacks=[seen], precision="64-true", gradient_clip_val=clip)
    assert [(r.step, r.layer) for r in monitor.history] == [(s, f"model.{i}") for s in range(3) for i in range(4)]
    for record in monitor.history[:4]:
        assert (record.delta_norm, record.grad_norm) == pytest.approx(expected[record.layer], rel=1e-12)
    for record in monitor.history:
        before, after = (weights[f"{record.layer}.weight"] for weights in seen.seen[record.step])
        assert record.update_ratio == pytest.approx(((after - before).norm() / before.norm()).item(), rel=1e-9)


def test_of_an_optimizer_that_computes_the_loss_again_the_first_time_counts(tmp_path: Path) -> None:
    module = Regression(net("sigmoid", "relu", None), torch.optim.LBFGS)
    expected, before = by_autograd(module, *next(iter(data()))), copy.deepcopy(module)
    monitor = watched(tmp_path, module, precision="64-true", limit_train_batches=1)
    for i, record in enumerate(monitor.history):
        assert (record.delta_norm, record.grad_norm) == pytest.approx(expected[record.layer], rel=1e-12)
        old, new = before.model[i].weight, module.model[i].weight
        assert record.update_ratio == pytest.approx(((new - old).norm() / old.norm()).item(), rel=1e-9)


def test_saturated_and_dead_units_are_counted(tmp_path: Path) -> None:
    model = net("sigmoid", "relu", "tanh", "leaky_relu", None)
    with torch.no_grad():
        model[0].weight.zero_(), model[0].bias.copy_(torch.tensor([9.0, -9.0, 0.0, 4.58, 4.59]))
        model[1].weight.zero_(), model[1].bias.copy_(torch.tensor([-1.0, 0.0, 1.0, 1.0, 1.0]))
    monitor = watched(tmp_path, Regression(model), limit_train_batches=1)
    assert [(r.saturated, r.dead) for r in monitor.history] == [
        (pytest.approx(3 / 5), None),  # sigma'(4.58) = 0.01005, sigma'(4.59) = 0.00995
        (None, pytest.approx(2 / 5)),
        (0.0, None),
        (0.0, None),  # sigma' is 0.01 at the least
        (None, None),  # no activation
    ]
    assert monitor.history[0].update_ratio is None  # its weights were 0


def test_dead_means_in_the_whole_batch(tmp_path: Path) -> None:
    model = nn.Sequential(mg.Dense(1, 3, activation="relu", dtype=torch.float64))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0], [0.0]])), model[0].bias.copy_(torch.tensor([0.0, 0.0, -1.0]))
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    loader = DataLoader(TensorDataset(x, torch.zeros(2, 3, dtype=torch.float64)), batch_size=1)
    for accumulate, expected in ((1, 2 / 3), (2, 1 / 3)):  # of one row, of both
        monitor = watched(tmp_path, Regression(model, lr=0.0), loader, accumulate_grad_batches=accumulate)
        assert monitor.history[0].dead == pytest.approx(expected)


@pytest.mark.usefixtures("small_weights_too")
def test_factored_gradients_stay_factored(tmp_path: Path) -> None:
    kept: list[tuple[bool, float]] = []

    class Kept(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            for layer in pl_module.model:
                kept.append((layer.weight.grad.is_dense, layer.weight.grad.delta.norm().item()))

    torch.manual_seed(0)
    model = mg.MLP((40, 50, 30, 3), "tanh", dtype=torch.float64)
    loader = data(rows=6, batch_size=2, features=40)
    logger = TensorBoardLogger(tmp_path)
    monitor = BackpropMonitor(every_n_steps=1, histograms_every_n_steps=1)
    with mg.forbid_densify():
        watched(
            tmp_path, Regression(model), loader, monitor=monitor, callbacks=[Kept()], logger=logger, log_every_n_steps=1
        )
    assert [is_dense for is_dense, _ in kept] == [False] * 9
    assert [norm for _, norm in kept] == pytest.approx([r.delta_norm for r in monitor.history], rel=1e-12)

    dense = watched(tmp_path, Regression(mg.MLP((40, 50, 30, 3), "tanh", dtype=torch.float64), factored=False), loader)
    assert len(dense.history) == len(monitor.history)


def test_accumulated_batches_count_as_one(tmp_path: Path) -> None:
    whole = watched(tmp_path, Regression(net("tanh", "relu", None)), data(rows=12, batch_size=12))
    parts = watched(
        tmp_path,
        Regression(net("tanh", "relu", None)),
        data(rows=12, batch_size=4),
        accumulate_grad_batches=3,
        val_check_interval=1.0,
    )
    assert len(parts.history) == 3
    for ours, theirs in zip(parts.history, whole.history, strict=True):
        assert filled(ours) == pytest.approx(filled(theirs), rel=1e-12)


class Odd(nn.Module):
    """A layer used twice, a frozen one, a batch norm between, one that is not used, and one called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = mg.Dense(6, 6, activation="silu")
        self.norm = nn.BatchNorm1d(6)
        self.frozen = mg.Dense(6, 6, activation="tanh").requires_grad_(False)
        self.unused = mg.Dense(6, 6)
        self.last = mg.Dense(6, 3, bias=False, activation="softplus")

    def forward(self, x: Tensor) -> Tensor:
        return self.last(input=self.frozen(self.norm(self.twice(self.twice(x)))))


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_odd_models(tmp_path: Path, precision: Any) -> None:
    torch.manual_seed(0)
    dtype = torch.float64 if precision == "64-true" else torch.float32
    monitor = watched(tmp_path, Regression(Odd()), data(dtype=dtype), precision=precision)
    records = {r.layer: r for r in monitor.history if r.step == 0}
    assert list(records) == ["model.twice", "model.frozen", "model.last"]
    assert records["model.frozen"].grad_norm is records["model.frozen"].update_ratio is None
    assert records["model.frozen"].delta_norm is not None
    assert all(value is not None for value in records["model.twice"][2:6])


def test_of_a_layer_used_twice_the_squares_add_up(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer, last = mg.Dense(6, 6, activation="tanh"), mg.Dense(6, 3)
    x, y = next(iter(data(dtype=torch.float32)))
    z = [nn.functional.linear(x, layer.weight, layer.bias)]
    z.append(nn.functional.linear(z[0].tanh(), layer.weight, layer.bias))
    deltas = torch.autograd.grad(nn.functional.mse_loss(last(z[1].tanh()), y), z)
    monitor = watched(tmp_path, Regression(nn.Sequential(layer, layer, last)), data(dtype=torch.float32))
    assert monitor.history[0].delta_norm == pytest.approx(torch.stack(deltas).norm().item(), rel=1e-5)


def test_the_scale_of_the_loss_is_taken_out_again(tmp_path: Path) -> None:
    runs = [
        watched(tmp_path, Regression(net("tanh", None, dtype=torch.float32)), data(dtype=torch.float32), **options)
        for options in ({}, {"plugins": scaled(2.0**10)})
    ]
    for full, half in zip(*(run.history for run in runs), strict=True):
        assert filled(half) == pytest.approx(filled(full), rel=1e-2)
