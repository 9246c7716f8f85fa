"""The engine "train_step": the step that `mg.TrainStep` records, inside Lightning's loop."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from manualgrad.lightning.audit import AutogradAudit
from manualgrad.lightning.hand_written_backprop import HandWrittenBackprop
from manualgrad.train_step.train_step import TrainStep
from manualgrad.train_step.update_rules import KINDS


OF_THE_MODULE = "backward configure_gradient_clipping".split()  # what a recorded step does not call
WITH_GRADIENTS = "on_before_backward on_after_backward on_before_optimizer_step on_before_zero_grad".split()


class TrainStepEngine:
    """Takes the step in `training_step`. Lightning then goes through automatic optimization with no gradients to apply, so that
    steps are counted, learning rates scheduled and checkpoints written as ever.

    The `TrainStep` is made when first used, since Lightning moves and loads the parameters before that.
    """

    def __init__(self) -> None:
        self._step: TrainStep | None = None
        self.checked: Trainer | None = None  # whose training `check` has let pass
        self.cost: Tensor | None = None  # of the step just taken, until `backward` has seen it

    def __getstate__(self) -> dict:
        return {"_step": None, "checked": None, "cost": None}  # a copy of the module makes a step of its own

    def check(self, module: LightningModule, parent: type[LightningModule], *methods: str, maker: str = "") -> None:
        """Raises ValueError, which names it, for anything that the recorded step would leave out. `parent`: the class of this
        package that the module comes from; `methods`: those of its methods that are not called; `maker`: what takes `max_norm`."""
        trainer, name = module.trainer, type(module).__name__
        if not module.automatic_optimization:
            raise _refusal(
                "automatic optimization",
                "automatic_optimization=False",
                "It takes the place of Lightning's own step",
                "call mg.TrainStep yourself",
                verb="",
            )
        if trainer.world_size > 1:
            raise _refusal(
                "a single process", str(trainer.world_size), "It does not average gradients", "Trainer(devices=1)"
            )
        _check_accumulation(trainer)
        if trainer.gradient_clip_val is not None:
            raise _refusal(
                "Trainer(gradient_clip_val=None)",
                str(trainer.gradient_clip_val),
                "It keeps no gradients for the Trainer to clip",
                f"{maker or 'take_step'}(max_norm={trainer.gradient_clip_val}), which clips their norm",
            )
        optimizer = trainer.optimizers[0]
        if type(optimizer) not in KINDS:
            raise _refusal(
                "the optimizer mg.GradientDescent, SGD, Adam or AdamW",
                type(optimizer).__name__,
                "It has no other update",
                "return one of these from configure_optimizers",
                verb="",
            )
        for method in [*methods, *OF_THE_MODULE, *WITH_GRADIENTS]:
            if is_overridden(method, module, parent):
                raise _refusal(
                    f"{parent.__name__}'s own {method}", f"that of {name}", "It is not called, or finds no gradients"
                )
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            sees = next((method for method in WITH_GRADIENTS if is_overridden(method, callback, Callback)), None)
            audits = isinstance(callback, HandWrittenBackprop) and callback.audit is not None
            if sees or audits or isinstance(callback, AutogradAudit | GradientAccumulationScheduler):
                raise _refusal(
                    "no callback that needs gradients",
                    type(callback).__name__,
                    "It keeps none",
                    "leave its audit_every_n_steps out" if audits else "remove the callback",
                    verb="",
                )
        self.checked = trainer

    def run(
        self,
        trainer: Trainer,
        model: nn.Module,
        loss: nn.Module,
        max_norm: float | None,
        inputs: Tensor,
        targets: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Take a step. Returns the loss (), and the outputs before the update. Raises what `check` and `TrainStep` raise."""
        _check_accumulation(trainer)  # a callback may change it
        optimizer: Any = trainer.optimizers[0]
        step = self._step
        if step is None or (step.model, step.loss, step.optimizer, step.max_norm) != (model, loss, optimizer, max_norm):
            self._step = step = TrainStep(model, loss, optimizer, max_norm=max_norm)
        self.cost = step(inputs, targets)
        return self.cost, step.outputs

    def check_loss(self, loss: Tensor, name: str) -> None:
        """Raises RuntimeError unless `loss`, which `training_step` has returned, is that of the step taken."""
        cost, self.cost = self.cost, None
        assert cost is not None
        if loss.requires_grad or (loss.device.type == "cpu" and not torch.equal(loss.nan_to_num(), cost.nan_to_num())):
            raise RuntimeError(
                f'engine="train_step" expected {name}.training_step to return the loss of the step that it has taken, got another. '
                'Pass engine="autograd" to train with a loss of your own.'
            )


def _check_accumulation(trainer: Trainer) -> None:
    batches = trainer.accumulate_grad_batches
    if batches != 1:
        raise _refusal(
            "Trainer(accumulate_grad_batches=1)",
            str(batches),
            "It updates the weights with every batch",
            f"batches {batches} times as large",
        )


def _refusal(expected: str, got: str, reason: str, cure: str = "", verb: str = "pass ") -> ValueError:
    other = f", or {verb}{cure}" if cure else ""
    return ValueError(f'engine="train_step" expected {expected}, got {got}. {reason}. Pass engine="autograd"{other}.')
