"""A module and data as a user writes them, in a file `mine.py` of the current folder. `note` says what was made of the options."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manualgrad.cli.main import main


MINE = '''
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset

import manualgrad as mg
from manualgrad.lightning import BackpropModule


def note(**options):
    with open("notes", "a") as file:
        print(options, file=file)


class Net(LightningModule):
    """Options of the same names as BackpropModule's, of other types and defaults."""

    def __init__(self, sizes: int = 3, lr: float = 0.01, momentum: float = 0.25, loss: str = "own", engine: int = 5):
        super().__init__()
        note(sizes=sizes, lr=lr, momentum=momentum, loss=loss, engine=engine)
        self.lr, self.body = lr, mg.MLP([4, sizes, 1])

    def training_step(self, batch, batch_idx):
        return mg.QuadraticLoss()(self.body(batch[0]), batch[1])

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class WithHyperparameters(Net):
    def __init__(self, sizes: int = 3, lr: float = 0.01):
        super().__init__(sizes, lr)
        self.save_hyperparameters()


class Slow(BackpropModule):
    def __init__(self, sizes: tuple = (4, 2), lr: float = 0.03, lr_schedule: str = "constant"):
        note(sizes=sizes, lr=lr, lr_schedule=lr_schedule)
        super().__init__(sizes, lr=lr, lr_schedule=lr_schedule)


class Data(LightningDataModule):
    def __init__(self, batch_size: int = 7, seed: int = 3, num_workers: int = 0):
        super().__init__()
        note(batch_size=batch_size, seed=seed, num_workers=num_workers)
        self.batch_size = batch_size

    def train_dataloader(self):
        x = torch.randn(21, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, x[:, :1]), self.batch_size)

    test_dataloader = train_dataloader


class Other(Data):
    pass


class Classes(Data):
    def train_dataloader(self):
        x = torch.randn(21, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), self.batch_size)

    test_dataloader = train_dataloader
'''
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
SHORT = [*QUIET, "--trainer.max_epochs", "1"]
OWN = ["--model", "mine.Net", "--data", "mine.Data"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield tmp_path
    sys.modules.pop("mine", None)


def noted(*arguments: str) -> list[dict[str, Any]]:
    """What the user's data and then module were given by this command."""
    Path("notes").unlink(missing_ok=True)
    assert main(arguments) == 0
    notes = [eval(line) for line in Path("notes").read_text().splitlines()]
    return sorted(notes, key=lambda options: "batch_size" not in options)
