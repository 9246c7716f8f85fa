"""`BackpropMonitor` in two processes on gloo: the numbers of the joint batch, written and warned of once."""

from __future__ import annotations

import csv
import os
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, distributed, multiprocessing, nn
from torch.utils.data import DataLoader, TensorDataset

import manualgrad as mg
from manualgrad.lightning import BackpropMonitor


SIZES = (8, 8, 8, 8, 8, 4)
STEPS, ROWS = 4, 6


class Regression(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = mg.MLP(SIZES, "sigmoid", dtype=torch.float64)

    def training_step(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.model(pair[0]), pair[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return mg.GradientDescent(self.parameters(), lr=0.1, momentum=0.9)


def run(folder: Path, rows: slice, **options: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(STEPS, ROWS, n, generator=generator, dtype=torch.float64) for n in (SIZES[0], SIZES[-1]))
    part = TensorDataset(x[:, rows].flatten(0, 1), y[:, rows].flatten(0, 1))
    monitor = BackpropMonitor(every_n_steps=1, vanishing_below=0.05)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    logger = CSVLogger(folder, version=0)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[monitor],
        logger=logger,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        **quiet,
        **options,
    )
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer.fit(Regression(), DataLoader(part, batch_size=len(part) // STEPS))
    return {
        "history": [tuple(record) for record in monitor.history],
        "warnings": [str(w.message) for w in found if "BackpropMonitor" in str(w.message)],
        "metrics": {name: value.item() for name, value in trainer.callback_metrics.items()},
    }


def process(rank: int, port: int, folder: Path, results: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
    half = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    results[rank] = run(folder, half, devices=2, strategy="ddp")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("ddp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with multiprocessing.Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(process, args=(port, folder, results), nprocs=2)
        return folder, dict(results), run(tmp_path_factory.mktemp("alone"), slice(None), devices=1)


def test_every_process_has_the_numbers_of_the_joint_batch(trained: Any) -> None:
    _, (first, second), alone = trained[0], trained[1].values(), trained[2]
    assert first["history"] == second["history"] and first["metrics"] == second["metrics"]
    assert len(alone["history"]) == STEPS * (len(SIZES) - 1)
    for ours, theirs in zip(first["history"], alone["history"], strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2:5] == pytest.approx(theirs[2:5], rel=1e-9)


def test_writes_and_warns_once(trained: Any) -> None:
    folder, results, alone = trained
    assert alone["warnings"] and results[0]["warnings"] == alone["warnings"] and results[1]["warnings"] == []
    (path,) = folder.glob("**/metrics.csv")
    with open(path) as file:
        rows = [(int(row["step"]), float(row["delta_norm/model.0"])) for row in csv.DictReader(file)]
    assert [step for step, _ in rows] == list(range(STEPS))
    expected = [record[2] for record in results[0]["history"] if record[1] == "model.0"]
    assert [norm for _, norm in rows] == pytest.approx(expected, rel=1e-6)
