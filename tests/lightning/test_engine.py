"""`engine="train_step"` goes through Lightning to the same weights as `engine="autograd"`."""

from __future__ import annotations

import copy
import csv
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from manualgrad.lightning import BackpropModule, DigitsDataModule
from tests.lightning.runs import quiet_trainer, weights


def run(directory: Path, engine: Any, trainer_options: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    seed_everything(0)
    model = BackpropModule(engine=engine, **options)
    trainer = quiet_trainer(directory, precision="64-true", **trainer_options)
    trainer.fit(model, datamodule=DigitsDataModule())
    return trainer, model


@pytest.mark.parametrize(
    "options",
    [
        {"lr_schedule": "constant", "momentum": 0.0},
        {"lr_schedule": "cosine", "max_norm": 0.5},
        {"lr_schedule": "linear", "nesterov": True, "weight_decay": 1e-3, "loss": "binary_cross_entropy"},
        {"lr_schedule": "cosine", "loss": "quadratic", "output_activation": "sigmoid"},
    ],
    ids=str,
)
def test_the_same_weights_as_with_autograd(tmp_path: Path, options: dict[str, Any]) -> None:
    (trainer, model), (reference_trainer, reference) = (
        run(tmp_path, engine, {"limit_train_batches": 1.0}, **options) for engine in ("train_step", "autograd")
    )
    torch.testing.assert_close(weights(model), weights(reference), rtol=1e-12, atol=1e-12)
    assert trainer.global_step == reference_trainer.global_step == 80
    for name, value in reference_trainer.callback_metrics.items():
        torch.testing.assert_close(trainer.callback_metrics[name], value, rtol=1e-6, atol=1e-6)


def test_the_digits_to_97_percent(tmp_path: Path) -> None:
    accuracies = []
    for engine in ("train_step", "autograd"):
        trainer, model = run(tmp_path, engine, {"limit_train_batches": 1.0, "max_epochs": 12})
        accuracies.append(trainer.test(model, datamodule=DigitsDataModule(), verbose=False)[0]["test_accuracy"])
    assert accuracies[0] == accuracies[1] >= 0.97


def test_callbacks_see_steps_and_rates_and_a_run_can_be_resumed(tmp_path: Path) -> None:
    def checkpoints(name: str) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / name, filename="{step}", every_n_train_steps=7, save_top_k=-1)

    logger = CSVLogger(tmp_path)
    options: dict[str, Any] = {"enable_checkpointing": True, "log_every_n_steps": 1, "logger": logger}
    options["callbacks"] = [checkpoints("whole"), LearningRateMonitor("step")]
    _, whole = run(tmp_path, "train_step", options, max_norm=1.0)
    assert sorted(p.name for p in (tmp_path / "whole").iterdir()) == ["step=14.ckpt", "step=7.ckpt"]
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rates = [float(row["lr-GradientDescent"]) for row in csv.DictReader(file) if row["lr-GradientDescent"]]
    assert len(rates) == 20 and rates == sorted(rates, reverse=True) and rates[0] > rates[-1]

    saved = shutil.copy(tmp_path / "whole" / "step=14.ckpt", tmp_path)
    shutil.rmtree(tmp_path / "whole")  # Lightning wants the same directory, and an empty one
    seed_everything(1)
    resumed = BackpropModule(engine="train_step", max_norm=1.0)
    again = {"enable_checkpointing": True, "callbacks": [checkpoints("whole")]}
    trainer = quiet_trainer(tmp_path, precision="64-true", **again)
    trainer.fit(resumed, datamodule=DigitsDataModule(), ckpt_path=saved, weights_only=True)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


def test_autograd_clips_at_max_norm_as_at_the_trainers_value(tmp_path: Path) -> None:
    (_, model), (_, reference) = (
        run(tmp_path, "autograd", trainer_options, max_norm=limit)
        for trainer_options, limit in (({}, 0.1), ({"gradient_clip_val": 0.1}, None))
    )
    torch.testing.assert_close(weights(model), weights(reference), rtol=0, atol=0)


def test_a_copy_of_a_fitted_module_makes_its_own_step(tmp_path: Path) -> None:
    _, model = run(tmp_path, "train_step", {})
    before = weights(model).clone()
    other = copy.deepcopy(model)
    quiet_trainer(tmp_path, precision="64-true").fit(other, datamodule=DigitsDataModule())
    torch.testing.assert_close(weights(model), before, rtol=0, atol=0)
    assert not torch.equal(weights(other), before)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"engine": "tape"},
            "Unknown engine 'tape'. Known: autograd, train_step. Pass for example engine='train_step'.",
        ),
        ({"max_norm": 0}, "Invalid max_norm: 0. Expected a number > 0 or None, for example max_norm=1.0."),
    ],
)
def test_wrong_options(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        BackpropModule(**options)


def test_autocast_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="^TrainStep expected to run outside torch.autocast, got a call inside"):
        quiet_trainer(tmp_path, precision="bf16-mixed").fit(
            BackpropModule(engine="train_step"), datamodule=DigitsDataModule()
        )
