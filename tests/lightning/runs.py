"""Short Lightning runs for the tests: quiet, on the CPU, in a directory of their own."""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from manualgrad.lightning import BackpropModule, DigitsDataModule


def quiet_trainer(directory: Path, **options: Any) -> Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": directory,
        "max_epochs": 2,
        "limit_train_batches": 10,
        "limit_val_batches": 2,
    }
    return Trainer(**{**defaults, **options})


def fitted(directory: Path, model: LightningModule | None = None, **options: Any) -> LightningModule:
    """A small model, or this one, after a short fit on the digits."""
    seed_everything(0)
    model = BackpropModule(sizes=(64, 16, 10)) if model is None else model
    quiet_trainer(directory, **options).fit(model, datamodule=DigitsDataModule())
    return model


def weights(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def fitted_with_checkpoints(
    directory: Path, resume_from: Path | None = None, num_workers: int = 0, **options: Any
) -> Tensor:
    """The final weights of a run with a checkpoint every 7 steps, or of one that goes on from `resume_from`."""
    seed_everything(0 if resume_from is None else 1)  # a resumed run begins with other weights and random numbers
    if resume_from is not None:  # Lightning wants the same directory, and an empty one
        resume_from = Path(shutil.copy(resume_from, directory.with_name("resumed_from.ckpt")))
        shutil.rmtree(directory)
    checkpoints = ModelCheckpoint(directory, filename="{step}", every_n_train_steps=7, save_top_k=-1)
    model = BackpropModule(sizes=(64, 16, 10))
    options = {"max_epochs": 3, "enable_checkpointing": True, "callbacks": [checkpoints], **options}
    trainer = quiet_trainer(directory.parent, **options)
    trainer.fit(model, datamodule=DigitsDataModule(num_workers=num_workers), ckpt_path=resume_from, weights_only=True)
    return weights(model)
