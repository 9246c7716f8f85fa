"""`BackpropMonitor` under a real Trainer: its numbers, where they go, what it warns of, and that it changes nothing."""

from __future__ import annotations

import copy
import csv
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import manualgrad as mg
from manualgrad.cli.main import main
from manualgrad.lightning import BackpropModule, BackpropMonitor, DigitsDataModule
from manualgrad.lightning.monitor.layer_record import LayerRecord
from tests.lightning.runs import fitted, quiet_trainer, weights


class Regression(LightningModule):
    """A model under the mean squared error, with any optimizer."""

    def __init__(self, model: nn.Module, optimizer: Any = mg.GradientDescent, **options: Any) -> None:
        super().__init__()
        self.model, self.make_optimizer, self.options = model, optimizer, {"lr": 0.05, **options}

    def training_step(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.model(pair[0]), pair[1])

    def configure_optimizers(self) -> Any:
        return self.make_optimizer([p for p in self.parameters() if p.requires_grad], **self.options)


class Weights(Callback):
    """What each weight was around each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.before = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.seen.append((self.before, {name: p.detach().clone() for name, p in pl_module.named_parameters()}))


def data(rows: int = 12, batch_size: int = 4, features: int = 6, dtype: torch.dtype = torch.float64) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(rows, n, generator=generator, dtype=dtype) for n in (features, 3))
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def net(*activations: str | None, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    sizes = [6, *[5] * (len(activations) - 1), 3]
    layers = [
        mg.Dense(m, n, activation=sigma, dtype=dtype)
        for m, n, sigma in zip(sizes, sizes[1:], activations, strict=False)
    ]
    return nn.Sequential(*layers)


def watched(directory: Path, module: LightningModule, loader: DataLoader | None = None, **options: Any) -> Any:
    """The monitor of a fit of one epoch in which every step is sampled."""
    monitor = options.pop("monitor", None) or BackpropMonitor(every_n_steps=1)
    callbacks = [monitor, *options.pop("callbacks", [])]
    trainer = quiet_trainer(directory, callbacks=callbacks, **{"max_epochs": 1, **options})
    trainer.fit(module, loader or data())
    return monitor


def filled(record: LayerRecord) -> tuple[float, ...]:
    return tuple(-1.0 if quantity is None else quantity for quantity in record[2:])


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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "bf16-mixed"},
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1},
        {"val_check_interval": 3, "limit_val_batches": 1, "accumulate_grad_batches": 2},
    ],
    ids=str,
)
def test_training_is_the_same_bit_for_bit_with_and_without(tmp_path: Path, options: dict[str, Any]) -> None:
    models = [BackpropModule((64, 20, 10), activation="gelu")]
    models.append(copy.deepcopy(models[0]))
    plain, monitored = (
        fitted(tmp_path, model, callbacks=callbacks, **options)
        for model, callbacks in zip(models, ([], [BackpropMonitor(every_n_steps=2)]), strict=True)
    )
    assert torch.equal(weights(plain), weights(monitored))
    assert not any(module._forward_hooks for module in monitored.modules())


def test_reaches_csv_at_the_sampled_steps(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    monitor = BackpropMonitor(every_n_steps=4)
    fitted(tmp_path, callbacks=[monitor], max_epochs=1, logger=logger, log_every_n_steps=4)
    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["delta_norm/model.0"]]
    assert [int(row["step"]) for row in rows] == [3, 7]
    for row in rows:
        for record in (r for r in monitor.history if r.step == int(row["step"])):
            for name, value in zip(record._fields[2:], record[2:], strict=True):
                logged = row.get(f"{name}/{record.layer}")
                assert logged is None if value is None else float(logged or "nan") == pytest.approx(value, rel=1e-6)
    assert "dead/model.0" in rows[0] and "saturated/model.0" not in rows[0] and "dead/model.1" not in rows[0]


def test_reaches_tensorboard_with_histograms(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    monitor = BackpropMonitor(every_n_steps=5, histograms_every_n_steps=10)
    module = fitted(tmp_path, callbacks=[monitor], max_epochs=1, logger=logger, log_every_n_steps=5)
    events = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    for record in (r for r in monitor.history if r.step in (4, 9)):
        (scalar,) = [e for e in events.Scalars(f"delta_norm/{record.layer}") if e.step == record.step]
        assert scalar.value == pytest.approx(record.delta_norm, rel=1e-6)
    shapes = {f"model.{i}": module.model[i].weight.shape for i in range(2)}
    for name, size in (("delta", 32 * 16), ("gradient", 16 * 64), ("weight", 16 * 64)):
        histograms = events.Histograms(f"histogram_{name}/model.0")
        assert [e.step for e in histograms] == [0, 9]
        for event in histograms:
            value = event.histogram_value
            assert value.num == sum(value.bucket) == size
            record = next(r for r in monitor.history if (r.step, r.layer) == (event.step, "model.0"))
            if name != "weight":
                norm = record.delta_norm if name == "delta" else record.grad_norm
                assert value.sum_squares**0.5 == pytest.approx(norm, rel=1e-4)
            assert value.min <= value.bucket_limit[0] and value.bucket_limit[-1] == pytest.approx(value.max)
    assert shapes["model.0"] == (16, 64)


def test_without_a_logger_the_callback_metrics_have_them(tmp_path: Path) -> None:
    monitor = BackpropMonitor()
    trainer = quiet_trainer(tmp_path, callbacks=[monitor], max_epochs=1)
    trainer.fit(BackpropModule((64, 16, 10)), datamodule=DigitsDataModule())
    assert [r.step for r in monitor.history] == [0, 0]
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if "/" in name}
    assert metrics == {
        f"{name}/{r.layer}": pytest.approx(value, rel=1e-6)
        for r in monitor.history
        for name, value in zip(r._fields[2:], r[2:], strict=True)
        if value is not None
    }


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


def scaled(initial: float) -> Any:
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=initial))


def test_the_scale_of_the_loss_is_taken_out_again(tmp_path: Path) -> None:
    runs = [
        watched(tmp_path, Regression(net("tanh", None, dtype=torch.float32)), data(dtype=torch.float32), **options)
        for options in ({}, {"plugins": scaled(2.0**10)})
    ]
    for full, half in zip(*(run.history for run in runs), strict=True):
        assert filled(half) == pytest.approx(filled(full), rel=1e-2)


def test_a_skipped_step_updates_nothing_and_alarms_nobody(tmp_path: Path) -> None:
    module = Regression(net("tanh", None, dtype=torch.float32))
    monitor = watched(tmp_path, module, data(dtype=torch.float32), plugins=scaled(2.0**40), limit_train_batches=1)
    assert [r.update_ratio for r in monitor.history] == [0.0, 0.0]
    assert not all(torch.tensor(r.grad_norm).isfinite() for r in monitor.history)


def deep_sigmoid() -> BackpropModule:
    torch.manual_seed(0)
    return BackpropModule((64, *[32] * 6, 10), activation="sigmoid")


def caught(directory: Path, module: LightningModule, monitor: BackpropMonitor, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        fitted(directory, module, callbacks=[monitor], **{"max_epochs": 1, **options})
    return [str(w.message) for w in found if "BackpropMonitor" in str(w.message)]


def test_names_the_layers_where_the_error_vanishes_once(tmp_path: Path) -> None:
    monitor = BackpropMonitor(every_n_steps=2)
    messages = caught(tmp_path, deep_sigmoid(), monitor)
    of_last = {r.layer: r.delta_norm for r in monitor.history if r.step == 1}
    assert messages == [
        f"BackpropMonitor: layer 'model.{i}' is vanishing at step 1: |delta| is "
        f"{of_last[f'model.{i}'] / of_last['model.6']:.1e} of the last layer's. "
        "Use relu, or normalisation or residual connections between the layers. "
        "BackpropMonitor(vanishing_below=..., exploding_above=...) moves the limits."
        for i in (0, 1, 2)
    ]


def test_the_limits_can_be_moved(tmp_path: Path) -> None:
    assert caught(tmp_path, deep_sigmoid(), BackpropMonitor(2, vanishing_below=0.0)) == []
    healthy = BackpropModule((64, 16, 10))
    assert len(caught(tmp_path, healthy, BackpropMonitor(2, vanishing_below=1e3))) == 2
    assert len(caught(tmp_path, healthy, BackpropMonitor(2, vanishing_below=0, exploding_above=0.1))) == 2


def test_names_the_layers_that_explode_at_once(tmp_path: Path) -> None:
    module = BackpropModule((64, 16, 10), lr=1e30, loss="quadratic")
    messages = caught(tmp_path, module, BackpropMonitor(every_n_steps=1))
    assert len(messages) == 2 and all("is exploding at step 1: |dC/dw| is " in m for m in messages), messages
    assert messages[0].endswith(
        "Lower the learning rate, clip the gradients or scale down the initial weights. "
        "BackpropMonitor(vanishing_below=..., exploding_above=...) moves the limits."
    )


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_a_healthy_run_raises_no_alarm(tmp_path: Path, activation: str) -> None:
    monitor = BackpropMonitor(every_n_steps=2)  # warnings are errors
    module = BackpropModule((64, 32, 10), activation=activation)
    fitted(tmp_path, module, callbacks=[monitor], max_epochs=2, limit_train_batches=1.0, limit_val_batches=0)
    assert len(monitor.history) == 2 * (80 // 2 + 1)


def test_a_resumed_run_does_not_warn_again(tmp_path: Path) -> None:
    monitor = BackpropMonitor(every_n_steps=2)
    trainer = quiet_trainer(tmp_path, callbacks=[monitor], max_epochs=1)
    with pytest.warns(UserWarning, match="is vanishing at step 1"):
        trainer.fit(deep_sigmoid(), datamodule=DigitsDataModule())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    for path, expected in ((tmp_path / "half.ckpt", 0), (None, 3)):
        messages: list[str] = []
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            again = quiet_trainer(tmp_path, callbacks=[BackpropMonitor(every_n_steps=2)], max_epochs=2)
            again.fit(deep_sigmoid(), datamodule=DigitsDataModule(), ckpt_path=path, weights_only=True)
        messages = [str(w.message) for w in found if "BackpropMonitor" in str(w.message)]
        assert len(messages) == expected


def test_hooks_are_removed_when_training_fails(tmp_path: Path) -> None:
    class Failing(Regression):
        def training_step(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            super().training_step(pair)
            raise KeyError("the user's own")

    module = Failing(net("tanh", None))
    with pytest.raises(KeyError, match="the user's own"):
        watched(tmp_path, module)
    assert not any(layer._forward_hooks for layer in module.modules())


def test_a_model_without_dense_layers(tmp_path: Path) -> None:
    module = Regression(nn.Sequential(nn.Linear(6, 3, dtype=torch.float64)))
    with pytest.raises(ValueError) as error:
        watched(tmp_path, module)
    assert str(error.value) == (
        "BackpropMonitor expected a module with mg.Dense layers, got Regression without any. "
        "Convert its linear layers first: mg.convert(model)."
    )
    mg.convert(module.model)
    assert watched(tmp_path, module).history


def test_layers_may_be_made_late(tmp_path: Path) -> None:
    class Late(Regression):
        def configure_model(self) -> None:
            self.model = net("tanh", None)

    assert len(watched(tmp_path, Late(nn.Identity())).history) == 6


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_sharded_weights_are_refused(tmp_path: Path, strategy: Any) -> None:
    trainer: Any = quiet_trainer(tmp_path)
    trainer._accelerator_connector.strategy = strategy()  # FSDP as an argument is refused by Lightning without a GPU
    with pytest.raises(ValueError) as error:
        BackpropMonitor().setup(trainer, BackpropModule((64, 10)), "fit")
    assert str(error.value) == (
        f"BackpropMonitor expected whole weights on every process, got {strategy.__name__}, which shards them. "
        'Remove the callback, or pass Trainer(strategy="ddp").'
    )


def test_needs_automatic_optimization(tmp_path: Path) -> None:
    module = BackpropModule((64, 10), engine="train_step")
    with pytest.raises(ValueError) as error:
        fitted(tmp_path, module, callbacks=[BackpropMonitor()])
    assert str(error.value) == (
        "BackpropMonitor expected a module with automatic optimization, got BackpropModule with "
        "automatic_optimization=False, whose gradients it cannot see. Remove the callback, return the loss from "
        'training_step, or with BackpropModule pass engine="autograd".'
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"every_n_steps": 0},
            "BackpropMonitor expected `every_n_steps` to be at least 1, got 0. Pass for example every_n_steps=50.",
        ),
        (
            {"histograms_every_n_steps": -1},
            "BackpropMonitor expected `histograms_every_n_steps` to be at least 1, got -1. "
            "Pass for example histograms_every_n_steps=500.",
        ),
        (
            {"saturated_below": float("nan")},
            "BackpropMonitor expected `saturated_below` to be a number >= 0, got nan. Pass for example saturated_below=0.01.",
        ),
        (
            {"vanishing_below": -1.0},
            "BackpropMonitor expected `vanishing_below` to be a number >= 0, got -1.0. Pass for example vanishing_below=1e-3.",
        ),
        (
            {"exploding_above": -1.0},
            "BackpropMonitor expected `exploding_above` to be a number >= 0, got -1.0. Pass for example exploding_above=1e3.",
        ),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        BackpropMonitor(**options)
    assert str(error.value) == message


def test_plot_has_titles_units_and_legends(tmp_path: Path) -> None:
    monitor = BackpropMonitor(every_n_steps=2)
    with pytest.raises(ValueError) as error:
        monitor.plot()
    assert str(error.value) == "BackpropMonitor.plot() expected a history, got none. Call it after Trainer.fit."
    fitted(tmp_path, callbacks=[monitor])
    figure = monitor.plot()
    figure.savefig(tmp_path / "plot.png")
    assert len(figure.axes) == 4 and all(
        axes.get_title() and axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes
    )
    profile = figure.axes[0].lines
    assert [line.get_label() for line in profile] == ["step 0", "step 9", "step 19"]
    for line in profile:
        step = int(str(line.get_label()).split()[1])
        assert np.asarray(line.get_ydata()).tolist() == [r.delta_norm for r in monitor.history if r.step == step]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["model.0", "model.1"]


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monitor = ["--trainer.callbacks", "manualgrad.lightning.BackpropMonitor", "--trainer.callbacks.every_n_steps", "20"]
    assert (
        main(
            [
                "fit",
                *monitor,
                "--trainer.max_epochs",
                "1",
                "--trainer.logger",
                "CSVLogger",
                "--trainer.logger.save_dir",
                ".",
            ]
        )
        == 0
    )
    (log,) = tmp_path.glob("lightning_logs/version_0/metrics.csv")
    with open(log) as file:
        assert any(row["update_ratio/model.1"] for row in csv.DictReader(file))


def test_records_are_plain_tuples() -> None:
    assert LayerRecord._fields == (
        "step",
        "layer",
        "delta_norm",
        "grad_norm",
        "update_ratio",
        "saturated",
        "dead",
    )
