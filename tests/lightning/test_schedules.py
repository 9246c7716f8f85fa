"""Learning rates: with engine "train_step" as with "autograd", and over the whole of a training that is resumed."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from torch.optim import lr_scheduler

import manualgrad as mg
from manualgrad.lightning import AutogradAudit, BackpropModule, BackpropMonitor
from tests.lightning.runs import weights
from tests.lightning.small_fits import CLASSES, FEATURES, Rates, fit


SIZES = (FEATURES, 5, CLASSES)


class Scheduled(BackpropModule):
    """`configure_optimizers` of the user's own."""

    make: Any
    config: dict[str, Any]

    def configure_optimizers(self) -> Any:
        optimizer = mg.GradientDescent(self.parameters(), lr=0.5, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.make(optimizer), **self.config}}


SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "StepLR, once per epoch": (lambda o: lr_scheduler.StepLR(o, 1, gamma=0.5), {}),
    "every second epoch": (lambda o: lr_scheduler.ExponentialLR(o, 0.5), {"frequency": 2}),
    "every step": (lambda o: lr_scheduler.ExponentialLR(o, 0.9), {"interval": "step"}),
    "every third step": (lambda o: lr_scheduler.ExponentialLR(o, 0.5), {"interval": "step", "frequency": 3}),
    "OneCycleLR": (lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=13), {"interval": "step"}),
    "on a plateau": (
        lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.1, patience=0, threshold=0.9),
        {"monitor": "val_loss"},
    ),
    "on a plateau of steps": (
        lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=0.9),
        {"monitor": "train_loss", "interval": "step", "frequency": 2},
    ),
    "in turn": (
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.5)], milestones=[2]
        ),
        {},
    ),
}


@pytest.mark.parametrize(("make", "config"), SCHEDULERS.values(), ids=SCHEDULERS)
def test_any_scheduler_steps_as_with_autograd(tmp_path: Path, make: Any, config: dict[str, Any]) -> None:
    runs = []
    for engine in ("train_step", "autograd"):
        torch.manual_seed(0)
        module, rates = Scheduled(SIZES, "tanh", engine=engine), Rates()
        module.make, module.config = make, config
        fit(tmp_path, module, callbacks=[rates])
        runs.append((weights(module), rates.seen))
    (ours, rates_of_ours), (theirs, rates_of_theirs) = runs
    assert rates_of_ours == rates_of_theirs and len(set(rates_of_ours)) > 1
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_averaged_weights_and_a_step_of_the_users_own(tmp_path: Path) -> None:
    class WarmUp(BackpropModule):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer.step(closure=optimizer_closure)
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (1 + self.trainer.global_step)

    runs = []
    for engine in ("train_step", "autograd"):
        torch.manual_seed(0)
        module = WarmUp(SIZES, "tanh", engine=engine, lr_schedule="constant")
        fit(tmp_path, module, callbacks=[StochasticWeightAveraging(0.05, swa_epoch_start=1, annealing_epochs=1)])
        runs.append(weights(module))
    torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-12)


class RMSprop(BackpropModule):
    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters())


class Penalised(BackpropModule):
    def cost(self, outputs: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return super().cost(outputs, classes) + self.model[0].weight.square().sum()


class Noisy(BackpropModule):
    def on_after_backward(self) -> None:
        for p in self.parameters():
            assert p.grad is not None
            p.grad += 1


class LogsGradients(Callback):
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        pass


NEEDS_NONE = 'got {}. It keeps none. Pass engine="autograd", or remove the callback.'


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (
            RMSprop,
            {},
            "the optimizer mg.GradientDescent, SGD, Adam or AdamW, got RMSprop. It has no other update. "
            'Pass engine="autograd", or return one of these from configure_optimizers.',
        ),
        (
            BackpropModule,
            {"accumulate_grad_batches": 2},
            "Trainer(accumulate_grad_batches=1), got 2. It updates the weights with every batch. "
            'Pass engine="autograd", or pass batches 2 times as large.',
        ),
        (
            BackpropModule,
            {"gradient_clip_val": 0.5},
            "Trainer(gradient_clip_val=None), got 0.5. It keeps no gradients for the Trainer to clip. "
            'Pass engine="autograd", or pass BackpropModule(max_norm=0.5), which clips their norm.',
        ),
        (
            BackpropModule,
            {"devices": 2, "strategy": "ddp_spawn"},
            'a single process, got 2. It does not average gradients. Pass engine="autograd", or pass Trainer(devices=1).',
        ),
        (
            Penalised,
            {},
            'BackpropModule\'s own cost, got that of Penalised. It is not called, or finds no gradients. Pass engine="autograd".',
        ),
        (
            Noisy,
            {},
            "BackpropModule's own on_after_backward, got that of Noisy. It is not called, or finds no gradients. "
            'Pass engine="autograd".',
        ),
        *(
            (BackpropModule, {"callbacks": [callback]}, f"no callback that needs gradients, {NEEDS_NONE.format(name)}")
            for callback, name in (
                (AutogradAudit(), "AutogradAudit"),
                (BackpropMonitor(), "BackpropMonitor"),
                (GradientAccumulationScheduler({1: 2}), "GradientAccumulationScheduler"),
                (LogsGradients(), "LogsGradients"),
            )
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_what_a_recorded_step_would_leave_out_is_refused_by_name(
    tmp_path: Path, make: Any, options: dict[str, Any], sentence: str
) -> None:
    module = make(SIZES, engine="train_step")
    before = weights(module).clone()
    with pytest.raises(Exception, match=re.escape(f'engine="train_step" expected {sentence}')):  # torch's, if spawned
        fit(tmp_path, module, **options)
    assert torch.equal(weights(module).float(), before)


def test_accumulation_that_begins_later_is_refused_too(tmp_path: Path) -> None:
    class Later(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.accumulate_grad_batches = 1 + trainer.current_epoch

    with pytest.raises(ValueError, match=re.escape("expected Trainer(accumulate_grad_batches=1), got 2.")):
        fit(tmp_path, BackpropModule(SIZES, engine="train_step"), callbacks=[Later()])


@pytest.mark.parametrize("wrong", [lambda loss, w: 2 * loss, lambda loss, w: loss + w.square().sum()])
def test_another_loss_than_that_of_the_step_is_refused(tmp_path: Path, wrong: Any) -> None:
    class Changed(BackpropModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return wrong(super().training_step(batch, batch_idx), self.model[0].weight)

    with pytest.raises(RuntimeError) as error:
        fit(tmp_path, Changed(SIZES, engine="train_step"))
    assert str(error.value) == (
        'engine="train_step" expected Changed.training_step to return the loss of the step that it has taken, got another. '
        'Pass engine="autograd" to train with a loss of your own.'
    )


FACTOR = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}


@pytest.mark.parametrize("engine", ["autograd", "train_step"])
@pytest.mark.parametrize("before", FACTOR)
@pytest.mark.parametrize("after", FACTOR)
def test_a_resumed_training_follows_its_own_schedule(tmp_path: Path, engine: Any, before: Any, after: Any) -> None:
    first = BackpropModule(SIZES, lr=0.2, lr_schedule=before, engine=engine)
    fit(tmp_path, first, max_epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    rates = Rates()
    module = BackpropModule(SIZES, lr=0.2, lr_schedule=after, engine=engine)
    fit(tmp_path, module, tmp_path / "half.ckpt", max_epochs=5, callbacks=[rates])
    assert rates.seen == pytest.approx([0.2 * FACTOR[after](step / 20) for step in range(8, 20)], rel=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_checkpoints_with_the_state_of_pytorchs_own_scheduler_load(tmp_path: Path, schedule: Any) -> None:
    fit(tmp_path, BackpropModule(SIZES, lr=0.2, lr_schedule=schedule), max_epochs=2).save_checkpoint(
        tmp_path / "x.ckpt"
    )
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.2)
    theirs: Any = lr_scheduler.CosineAnnealingLR(optimizer, 8)
    if schedule == "linear":
        theirs = lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 8)
    for _ in range(8):
        optimizer.step(), theirs.step()
    checkpoint["lr_schedulers"] = [theirs.state_dict()]
    torch.save(checkpoint, tmp_path / "x.ckpt")
    rates = Rates()
    module = BackpropModule(SIZES, lr=0.2, lr_schedule=schedule)
    fit(tmp_path, module, tmp_path / "x.ckpt", max_epochs=4, callbacks=[rates])
    assert rates.seen == pytest.approx([0.2 * FACTOR[schedule](step / 16) for step in range(8, 16)], rel=1e-12)


def test_an_optimizer_of_ones_own_keeps_the_learning_rate_of_the_checkpoint(tmp_path: Path) -> None:
    class Own(BackpropModule):
        def configure_optimizers(self) -> Any:
            return mg.GradientDescent(self.parameters(), lr=self.hparams["lr"])

    fit(tmp_path, Own(SIZES, lr=0.2), max_epochs=1).save_checkpoint(tmp_path / "own.ckpt")
    rates = Rates()
    fit(tmp_path, Own(SIZES, lr=0.3), tmp_path / "own.ckpt", max_epochs=2, callbacks=[rates])
    assert rates.seen == [0.2] * 4  # what PyTorch does
