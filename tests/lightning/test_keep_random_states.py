import random
import re
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import manualgrad as mg
from manualgrad.lightning import BackpropModule, DigitsDataModule, KeepRandomStates, ResumableLoader
from manualgrad.lightning.module import ScheduleName
from tests.lightning.runs import quiet_trainer, weights


class WithDropout(BackpropModule):
    def __init__(self, lr_schedule: ScheduleName = "cosine") -> None:
        super().__init__(sizes=(64, 16, 10), lr_schedule=lr_schedule)
        self.model.insert(1, torch.nn.Dropout(0.3))


class Noisy(Dataset):
    """Rows with noise from each of the three generators."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        noise = torch.rand(64) + numpy.random.rand() + random.random()
        return noise.to(torch.float32), i % 10


class NoisyData(LightningDataModule):
    """Its loader shuffles, or, if resumable in mid-epoch, goes by a sampler whose order depends on the epoch alone."""

    def __init__(self, resumable: bool) -> None:
        super().__init__()
        self.resumable = resumable

    def train_dataloader(self) -> DataLoader:
        data = Noisy()
        if self.resumable:
            return ResumableLoader(data, batch_size=4, sampler=DistributedSampler(data, 1, 0))
        return DataLoader(data, batch_size=4, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Noisy(), batch_size=4)


class Save(Callback):
    """A checkpoint after this many steps, at the end of the batch or, where that is also one, of the epoch."""

    def __init__(self, path: Path, step: int, at_end_of_epoch: bool) -> None:
        self.path, self.step, self.at_end_of_epoch = path, step, at_end_of_epoch

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.at_end_of_epoch:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and self.at_end_of_epoch:
            trainer.save_checkpoint(self.path)


MID_EPOCH, END_OF_EPOCH = (14, False), (10, True)
LAST_BATCH = (10, False)


@pytest.mark.parametrize(
    ("data", "when", "options"),
    [
        (DigitsDataModule, MID_EPOCH, {}),
        (DigitsDataModule, LAST_BATCH, {}),
        (DigitsDataModule, END_OF_EPOCH, {"lr_schedule": "constant"}),
        (lambda: DigitsDataModule(num_workers=1), MID_EPOCH, {}),
        (DigitsDataModule, MID_EPOCH, {"val_check_interval": 0.5, "precision": "bf16-mixed"}),
        (lambda: NoisyData(resumable=True), MID_EPOCH, {"lr_schedule": "constant"}),
        (lambda: NoisyData(resumable=False), END_OF_EPOCH, {}),
        (lambda: NoisyData(resumable=False), END_OF_EPOCH, {"lr_schedule": "constant"}),
    ],
    ids=[
        "mid-epoch",
        "last batch",
        "end of epoch",
        "worker",
        "validation and bf16",
        "noisy data",
        "shuffled",
        "shuffled, constant",
    ],
)
def test_dropout_resumes_to_the_weights_of_an_uninterrupted_run(tmp_path, data, when, options):
    schedule = options.get("lr_schedule", "cosine")
    options = {name: value for name, value in options.items() if name != "lr_schedule"}

    def trained(start: Path | None, callbacks: list[Callback]) -> torch.Tensor:
        seed_everything(0 if start is None else 1)  # a resumed run begins with other weights and random numbers
        model = WithDropout(lr_schedule=schedule)
        trainer = quiet_trainer(tmp_path, max_epochs=3, callbacks=callbacks, **options)
        trainer.fit(model, datamodule=data(), ckpt_path=start, weights_only=True)
        return weights(model)

    uninterrupted = trained(None, [Save(tmp_path / "model.ckpt", *when)])
    assert torch.equal(trained(tmp_path / "model.ckpt", []), uninterrupted)


class PlainDropout(LightningModule):
    """A module that does not bring the callback along."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Sequential(mg.Dense(64, 8, activation="relu"), torch.nn.Dropout(0.5), mg.Dense(8, 10))

    def training_step(self, batch, batch_idx):
        return mg.SoftmaxCrossEntropyLoss()(self.model(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.model(batch[0])

    def configure_optimizers(self):
        return mg.GradientDescent(self.parameters(), lr=0.1)


def test_any_module_resumes_with_the_callback_and_not_without(tmp_path):
    def trained(epochs: int, callbacks: list, start: Path | None = None) -> Trainer:
        seed_everything(0 if start is None else 1)
        trainer = quiet_trainer(tmp_path, max_epochs=epochs, callbacks=callbacks)
        trainer.fit(PlainDropout(), NoisyData(resumable=False), ckpt_path=start, weights_only=True)
        return trainer

    uninterrupted = weights(trained(2, []).lightning_module)
    first = tmp_path / "first.ckpt"
    trained(1, [KeepRandomStates()]).save_checkpoint(first)
    assert torch.equal(weights(trained(2, [KeepRandomStates()], first).lightning_module), uninterrupted)
    assert not torch.equal(weights(trained(2, [], first).lightning_module), uninterrupted)


def test_a_checkpoint_that_is_only_tested_leaves_the_random_states_alone(tmp_path):
    trainer = quiet_trainer(tmp_path, max_steps=1)
    trainer.fit(model := WithDropout(), datamodule=DigitsDataModule())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    before = random.getstate()
    quiet_trainer(tmp_path).test(model, DigitsDataModule(), ckpt_path=tmp_path / "model.ckpt", verbose=False)
    WithDropout.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert random.getstate() == before
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert len(checkpoint["manualgrad.random_states"]) == 1


def test_a_checkpoint_without_random_states_resumes(tmp_path):
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(model := WithDropout(), datamodule=DigitsDataModule())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=True)
    del checkpoint["manualgrad.random_states"]
    torch.save(checkpoint, tmp_path / "older.ckpt")
    trainer = quiet_trainer(tmp_path, max_epochs=2)
    trainer.fit(model, datamodule=DigitsDataModule(), ckpt_path=tmp_path / "older.ckpt", weights_only=True)
    assert trainer.global_step == 20


def everything_random() -> tuple:
    numbers: Any = numpy.random.get_state()
    return torch.get_rng_state().tolist(), numbers[1].tolist(), random.getstate()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"torch": torch.zeros(3, dtype=torch.uint8)}, None),
        ({"numpy": ("MT19937", [0])}, None),
        ({"python": 3}, None),
        ({}, "'torch'"),
        (5, "a list expected, 5 found"),
    ],
    ids=["torch", "numpy", "python", "missing", "no list"],
)
def test_damaged_random_states_are_named_and_none_is_restored(tmp_path, damage, reason):
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(model := WithDropout(), datamodule=DigitsDataModule())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=True)
    key = "manualgrad.random_states"
    (saved,) = checkpoint[key]
    checkpoint[key] = damage if damage == 5 else [{**saved, **damage} if damage else {}]
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    seed_everything(7)
    before = everything_random()
    with pytest.raises(ValueError) as error:
        quiet_trainer(tmp_path, max_epochs=2).fit(model, DigitsDataModule(), ckpt_path=tmp_path / "damaged.ckpt")
    sentence = re.escape(
        f"Expected the random states that KeepRandomStates saves under {key!r}, got a checkpoint in which they are damaged "
        "(REASON). Resume from another one, or delete that entry from it to draw anew."
    )
    assert re.fullmatch(sentence.replace("REASON", re.escape(reason) if reason else ".+"), str(error.value))
    assert everything_random() == before
