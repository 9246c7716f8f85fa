"""Small models under a real Trainer with a `BackpropMonitor`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import manualgrad as mg
from manualgrad.lightning import BackpropMonitor
from manualgrad.lightning.monitor.layer_record import LayerRecord
from tests.lightning.runs import quiet_trainer


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


def scaled(initial: float) -> Any:
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=initial))
