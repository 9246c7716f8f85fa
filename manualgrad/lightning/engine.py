"""`BackpropModule`'s engine "train_step": the step that `mg.TrainStep` records, inside Lightning's loop."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from manualgrad.losses.loss import Loss
from manualgrad.optim.gradient_descent import GradientDescent
from manualgrad.train_step.train_step import TrainStep


class TrainStepEngine:
    """One optimizer step of a module under manual optimization, counted and scheduled as an automatic one is.

    The step is made when first used, since Lightning moves and loads the parameters before that.
    """

    def __init__(self, max_norm: float | None) -> None:
        self._max_norm = max_norm
        self._step: TrainStep | None = None

    def __getstate__(self) -> dict:
        return {"_max_norm": self._max_norm, "_step": None}  # a copy of the module makes a step of its own

    def run(
        self, module: LightningModule, model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the loss (), and the outputs before the update.

        Raises:
            RuntimeError: several processes, whose gradients it could not average; or what `TrainStep` raises.
        """
        if module.trainer.world_size > 1:
            raise RuntimeError(
                f'engine="train_step" expected a single process, got {module.trainer.world_size}: it does not average gradients. '
                'Pass engine="autograd", or Trainer(devices=1).'
            )
        optimizer = module.optimizers()
        assert isinstance(optimizer, LightningOptimizer) and isinstance(optimizer.optimizer, GradientDescent)
        if self._step is None or self._step.optimizer is not optimizer.optimizer:
            self._step = TrainStep(model, loss, optimizer.optimizer, max_norm=self._max_norm)
        step = self._step
        closure: Callable[[], Tensor] = lambda: step(inputs, targets)  # noqa: E731
        cost = optimizer.step(
            closure
        )  # no parameter has a gradient, so this only counts the step and calls Lightning's hooks
        scheduler = module.lr_schedulers()
        if scheduler is not None:
            scheduler.step()  # type: ignore[union-attr]
        return cost, step.outputs
