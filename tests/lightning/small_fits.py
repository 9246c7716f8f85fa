"""Fits of a few steps on random data, in float64, for comparing one way of training with another."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from tests.lightning.runs import quiet_trainer


FEATURES, CLASSES = 6, 3


def loader(rows: int = 20, batch_size: int = 6) -> DataLoader:
    """Batches of 6, 6, 6 and 2."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(rows, FEATURES, generator=generator, dtype=torch.float64)
    classes = torch.randint(CLASSES, (rows,), generator=generator)
    return DataLoader(TensorDataset(inputs, classes), batch_size=batch_size)


class Rates(Callback):
    """The learning rate of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.seen.append(float(trainer.optimizers[0].param_groups[0]["lr"]))


def fit(directory: Path, module: LightningModule, ckpt_path: Path | None = None, **options: Any) -> Trainer:
    batches = options.pop("batches", None) or loader()
    options = {"max_epochs": 3, "limit_train_batches": 1.0, "num_sanity_val_steps": 0, **options}
    trainer = quiet_trainer(directory, precision="64-true", **options)
    trainer.fit(module, batches, loader(9, 9), ckpt_path=ckpt_path, weights_only=True)
    return trainer
