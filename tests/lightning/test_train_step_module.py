"""`TrainStepModule`: a Lightning module of one's own whose steps `mg.TrainStep` takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, seed_everything
from torch import nn
from torch.optim import lr_scheduler

import manualgrad as mg
from manualgrad.lightning import HandWrittenBackprop, TrainStepModule
from manualgrad.lightning.step_comparison import compare_training_step
from tests.lightning.runs import quiet_trainer, weights
from tests.lightning.small_fits import CLASSES, FEATURES, loader


class WithName(LightningModule):
    """Another class that a user inherits from, with arguments of its own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.own_name = name


class Net(TrainStepModule, WithName):
    def __init__(self, engine: Any = "train_step", max_norm: float | None = None) -> None:
        super().__init__("net")
        self.engine, self.max_norm = engine, max_norm
        self.model = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES))
        self.loss = nn.CrossEntropyLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss, outputs = self.take_step(self.model, self.loss, *batch, engine=self.engine, max_norm=self.max_norm)
        self.log("train_loss", loss, on_epoch=True)
        self.log("right", (outputs.argmax(1) == batch[1]).double().mean(), on_epoch=True, on_step=False)
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        optimizer = mg.GradientDescent(self.parameters(), lr=0.2, momentum=0.9)
        return [optimizer], [lr_scheduler.StepLR(optimizer, 1, 0.5)]


def fit(folder: Path, module: LightningModule, **options: Any) -> Any:
    seed_everything(0)
    trainer = quiet_trainer(folder, **{"precision": "64-true", "limit_val_batches": 0, **options})
    trainer.fit(module, loader())
    return trainer


def made(make: Any = Net, **options: Any) -> Any:
    seed_everything(0)
    return make(**options)


@pytest.mark.parametrize(("max_norm", "clip"), [(None, None), (0.1, 0.1)])
def test_the_weights_and_logs_of_autograd(tmp_path: Path, max_norm: float | None, clip: float | None) -> None:
    module, reference = made(max_norm=max_norm), made(engine="autograd")
    trainer = fit(tmp_path, module)
    theirs = fit(tmp_path, reference, gradient_clip_val=clip)
    torch.testing.assert_close(weights(module), weights(reference), rtol=1e-12, atol=1e-12)
    assert trainer.global_step == theirs.global_step == 8
    assert trainer.callback_metrics.keys() == theirs.callback_metrics.keys()
    for name, value in theirs.callback_metrics.items():
        torch.testing.assert_close(trainer.callback_metrics[name], value, rtol=1e-12, atol=1e-12)
    assert module.own_name == "net"


def test_the_step_is_recorded_and_no_gradient_is_kept(tmp_path: Path) -> None:
    class Seen(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            assert all(p.grad is None for p in pl_module.parameters()) and pl_module._engine._step is not None

    fit(tmp_path, made(), callbacks=[Seen()])


def test_converted_by_the_callback_too_and_reverted(tmp_path: Path) -> None:
    module, reference = made(), made()
    fit(tmp_path, module, callbacks=[HandWrittenBackprop(page_every_n_epochs=1)])
    fit(tmp_path, reference)
    assert torch.equal(weights(module), weights(reference))
    assert type(module.model[0]) is nn.Linear and len([*(tmp_path / "step_pages").iterdir()]) == 2
    fit(tmp_path, module)  # the step recorded of converted layers is made anew


def test_a_copy_and_a_module_without_a_trainer_use_autograd(tmp_path: Path) -> None:
    module = made()
    loss = module.take_step(module.model, module.loss, torch.randn(2, FEATURES), torch.tensor([0, 1]))[0]
    assert loss.requires_grad
    fit(tmp_path, module)
    before = weights(module).clone()
    mg.convert(module)
    assert compare_training_step(module, next(iter(loader()))).ok
    assert torch.equal(weights(module), before)


class Clips(Net):
    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        pass


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (
            Net,
            {"accumulate_grad_batches": 2},
            "Trainer(accumulate_grad_batches=1), got 2. It updates the weights with every batch. "
            'Pass engine="autograd", or pass batches 2 times as large.',
        ),
        (
            Net,
            {"gradient_clip_val": 0.5},
            "Trainer(gradient_clip_val=None), got 0.5. It keeps no gradients for the Trainer to clip. "
            'Pass engine="autograd", or pass take_step(max_norm=0.5), which clips their norm.',
        ),
        (
            Clips,
            {},
            "TrainStepModule's own configure_gradient_clipping, got that of Clips. It is not called, or finds no gradients. "
            'Pass engine="autograd".',
        ),
        (
            Manual,
            {},
            "automatic optimization, got automatic_optimization=False. It takes the place of Lightning's own step. "
            'Pass engine="autograd", or call mg.TrainStep yourself.',
        ),
        (
            Net,
            {"callbacks": [HandWrittenBackprop(audit_every_n_steps=1)]},
            "no callback that needs gradients, got HandWrittenBackprop. It keeps none. "
            'Pass engine="autograd", or leave its audit_every_n_steps out.',
        ),
    ],
)
def test_what_the_step_would_leave_out_is_refused_before_it(
    tmp_path: Path, make: Any, options: dict[str, Any], sentence: str
) -> None:
    module = made(make)
    before = weights(module).clone()
    with pytest.raises(ValueError, match=f'^engine="train_step" expected {re.escape(sentence)}$'):
        fit(tmp_path, module, **options)
    assert torch.equal(weights(module).float(), before)


def test_another_loss_than_that_of_the_step_is_refused(tmp_path: Path) -> None:
    class Penalised(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            weight = self.model.get_parameter("0.weight")
            return super().training_step(batch, batch_idx)["loss"] + weight.square().sum()

    with pytest.raises(RuntimeError) as error:
        fit(tmp_path, made(Penalised))
    assert str(error.value) == (
        'engine="train_step" expected Penalised.training_step to return the loss of the step that it has taken, got another. '
        'Pass engine="autograd" to train with a loss of your own.'
    )


def test_a_training_resumed_from_a_checkpoint(tmp_path: Path) -> None:
    whole, first, resumed = made(), made(), made()
    fit(tmp_path, whole, max_epochs=3)
    fit(tmp_path, first, max_epochs=1).save_checkpoint(tmp_path / "first.ckpt")
    trainer = quiet_trainer(tmp_path, precision="64-true", limit_val_batches=0, max_epochs=3)
    trainer.fit(resumed, loader(), ckpt_path=tmp_path / "first.ckpt", weights_only=True)
    # Lightning loads the weights in float32 before it makes the module float64
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=1e-6)
