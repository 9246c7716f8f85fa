"""`BackpropMonitor` under a real Trainer: where its numbers go, what it warns of, and that it changes nothing."""

from __future__ import annotations

import copy
import csv
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.cli.main import main
from manualgrad.lightning import BackpropModule, BackpropMonitor, DigitsDataModule
from manualgrad.lightning.monitor.layer_record import LayerRecord
from tests.lightning.monitor.watched import Regression, data, net, scaled, watched
from tests.lightning.runs import fitted, quiet_trainer, weights


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
        'engine="train_step" expected no callback that needs gradients, got BackpropMonitor. It keeps none. '
        'Pass engine="autograd", or remove the callback.'
    )


def test_manual_optimization_is_refused(tmp_path: Path) -> None:
    module = BackpropModule((64, 10))
    module.automatic_optimization = False
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
