"""Dense layers for Lightning that learn classes or real numbers by gradient descent, with a backward pass written by hand."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanAbsoluteError, Metric
from torchmetrics.classification import MulticlassAccuracy

from manualgrad.layers.mlp import MLP
from manualgrad.lightning.checkpoint_io import check_intact
from manualgrad.lightning.keep_random_states import KeepRandomStates
from manualgrad.lightning.schedule import SCHEDULES, over_whole_training, take_schedule
from manualgrad.lightning.targets import RSquared, one_hot_rows, real_rows
from manualgrad.lightning.train_step_module import EngineName, TrainStepModule
from manualgrad.losses.cross_entropy import BinaryCrossEntropyLoss, SoftmaxCrossEntropyLoss
from manualgrad.losses.names import LOSSES, LossName
from manualgrad.losses.quadratic import QuadraticLoss
from manualgrad.optim.gradient_descent import GradientDescent


ScheduleName = Literal["constant", "cosine", "linear"]

ENGINES = ("autograd", "train_step")
LEARNS_NUMBERS = "manualgrad.learns_numbers"  # in a checkpoint, of a module whose targets were real numbers


class BackpropModule(TrainStepModule):
    """An `mg.MLP` that learns classes, or real numbers, by `mg.GradientDescent`.

    A batch is (inputs (n, sizes[0]), classes (n,) of int64); one output stands for the two classes 0 and 1. With
    loss="quadratic" floating point targets of the outputs' shape (n, sizes[-1]), or (n,) for one output, are real numbers to
    be learnt. Logs `train_loss` each step, the means of `val_loss` and `test_loss`, and per epoch `train_accuracy`,
    `val_accuracy`, `test_accuracy`; of real numbers in their place R^2 (`val_r2`: the mean over the outputs) and the mean
    absolute error (`val_mae`, in the targets' unit). Losses are means over the batch.

    Args:
        sizes: features in, of each hidden layer, and classes or real numbers out.
        activation: of the hidden layers, by name.
        output_activation: of the last layer, by name; None for the cross-entropies, which take z.
        loss: "cross_entropy" (softmax), "binary_cross_entropy" (a sigmoid per class) or "quadratic"; the last two compare
            the outputs with one-hot rows of the classes, "quadratic" also with real numbers.
        lr, momentum, weight_decay, nesterov: as for `mg.GradientDescent`.
        lr_schedule: "constant", or "cosine" or "linear" from `lr` down to 0 over the whole training. One resumed from a checkpoint
            goes on where the whole of the new one is at that step: with max_epochs=40, after 20 of 20 epochs, half way.
        engine: "autograd", or "train_step": `mg.TrainStep`, the same steps without an autograd graph, faster for small nets.
            Refused when training starts: several processes, autocast, `Trainer(accumulate_grad_batches=...)` and
            `gradient_clip_val`, other optimizers than `mg.GradientDescent`, `SGD`, `Adam` and `AdamW`, callbacks or methods of a
            subclass that need gradients.
        max_norm: clip the norm of all gradients together at this, with either engine. (`Trainer(gradient_clip_val=...)`
            does the same for "autograd" alone.)

    Raises:
        ValueError: an unknown activation, loss, schedule or engine, sizes or an option out of range.
    """

    def __init__(
        self,
        sizes: Sequence[int] = (64, 128, 10),
        activation: str = "relu",
        output_activation: str | None = None,
        loss: LossName = "cross_entropy",
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        lr_schedule: ScheduleName = "cosine",
        engine: EngineName = "autograd",
        max_norm: float | None = None,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"Unknown loss {loss!r}. Known: {', '.join(LOSSES)}. Pass for example loss='quadratic'.")
        if lr_schedule not in SCHEDULES:
            raise ValueError(
                f"Unknown lr_schedule {lr_schedule!r}. Known: {', '.join(SCHEDULES)}. Pass for example lr_schedule='cosine'."
            )
        if engine not in ENGINES:
            raise ValueError(
                f"Unknown engine {engine!r}. Known: {', '.join(ENGINES)}. Pass for example engine='train_step'."
            )
        if max_norm is not None and not (isinstance(max_norm, Real) and max_norm > 0):
            raise ValueError(
                f"Invalid max_norm: {max_norm!r}. Expected a number > 0 or None, for example max_norm=1.0."
            )
        self.save_hyperparameters()  # of a subclass that has fewer of its own perhaps: what is used stands below
        self.lr, self.momentum, self.weight_decay, self.nesterov = lr, momentum, weight_decay, nesterov
        self.lr_schedule, self.engine, self.max_norm = lr_schedule, engine, max_norm
        self.model = MLP(sizes, activation, output_activation)
        if loss == "cross_entropy" and self.model.sizes[-1] < 2:
            raise ValueError(
                "BackpropModule expected at least two classes for loss='cross_entropy', "
                f"got sizes={list(self.model.sizes)}. Pass loss='binary_cross_entropy', or a last size of 2 or more."
            )
        self.loss = LOSSES[loss]()
        self._learns_numbers = False  # real ones, as the last batch of targets were; else classes
        self.scores = nn.ModuleDict()
        for stage in ("train", "val", "test"):
            self.scores[f"{stage}_accuracy"] = MulticlassAccuracy(max(2, self.model.sizes[-1]), average="micro")
            if isinstance(self.loss, QuadraticLoss):
                self.scores[f"{stage}_r2"] = RSquared(self.model.sizes[-1])
                self.scores[f"{stage}_mae"] = MeanAbsoluteError()
        self.example_input_array = torch.zeros(1, self.model.sizes[0])
        self._gradient_descent([nn.Parameter(torch.zeros(1))])  # an option out of range fails here, not in `fit`

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (n, sizes[-1]) of inputs (n, sizes[0])."""
        return self.model(inputs)

    def cost(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """C, the mean over the batch: outputs (n, m), classes (n,) or real numbers (n, m) -> ()."""
        return self.loss(outputs, self._desired(outputs, targets))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if self.engine == "autograd":
            self._engine.cost = None
            return self._step("train", batch)
        inputs, targets = batch
        desired = self._desired(inputs.new_empty((*inputs.shape[:-1], self.model.sizes[-1])), targets)
        cost, outputs = self.take_step(self.model, self.loss, inputs, desired, max_norm=self.max_norm)
        return self._logged("train", cost, outputs, targets)

    def on_fit_start(self) -> None:
        if self.engine == "train_step":
            self._check_engine()

    def _check_engine(self) -> None:
        self._engine.check(self, BackpropModule, "forward", "cost", maker=type(self).__name__)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips at `max_norm`, or as the Trainer says."""
        limit = self.max_norm
        if limit is not None:
            gradient_clip_val, gradient_clip_algorithm = limit, "norm"
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The most likely class of each input, (n,) of int64; after training on real numbers the outputs (n, sizes[-1]) themselves.
        Targets in the batch are not looked at."""
        outputs = self(batch[0] if isinstance(batch, list | tuple) else batch)
        return outputs if self._learns_numbers else self._predicted(outputs)

    def configure_optimizers(self) -> Any:
        optimizer = self._gradient_descent(self.parameters())
        if self.lr_schedule == "constant":
            return optimizer
        scheduler = over_whole_training(self.lr_schedule, optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Lightning's, after the file's checksum. Raises ValueError if it is damaged."""
        if os.path.isfile(checkpoint_path):
            check_intact(checkpoint_path)
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def configure_callbacks(self) -> list[Callback]:
        return [KeepRandomStates()]  # a subclass may have dropout

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._learns_numbers:
            checkpoint[LEARNS_NUMBERS] = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning loads the weights before it makes the module float64 for 64-true, which would round them to float32."""
        self._learns_numbers = checkpoint.get(LEARNS_NUMBERS, False)
        if self._trainer is not None:
            self.trainer.precision_plugin.convert_module(self)
            if not is_overridden("configure_optimizers", self, BackpropModule):
                take_schedule(checkpoint, self.lr_schedule)

    def _step(self, stage: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        outputs = self(inputs)
        return self._logged(stage, self.cost(outputs, targets), outputs, targets)

    def _logged(self, stage: str, cost: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
        training, size = stage == "train", len(targets)
        self.log(
            f"{stage}_loss",
            cost,
            prog_bar=True,
            on_step=training,
            on_epoch=not training,
            sync_dist=not training,
            batch_size=size,
        )
        self._learns_numbers = self._are_real(targets)
        if self._learns_numbers:
            names, arguments = ["r2", "mae"], (outputs, real_rows(outputs, targets))
        else:
            names, arguments = ["accuracy"], (self._predicted(outputs), targets)
        for name in names:
            score = self.scores[f"{stage}_{name}"]
            assert isinstance(score, Metric)
            score.update(*arguments)
            self.log(f"{stage}_{name}", score, prog_bar=True, on_step=False, on_epoch=True, batch_size=size)
        return cost

    def _desired(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """y, what the loss compares the outputs (n, m) with: class indices as they are or as one-hot rows, or real numbers."""
        if isinstance(self.loss, SoftmaxCrossEntropyLoss):
            return targets
        return (real_rows if self._are_real(targets) else one_hot_rows)(outputs, targets)

    def _are_real(self, targets: Tensor) -> bool:
        return isinstance(self.loss, QuadraticLoss) and targets.is_floating_point()

    def _predicted(self, outputs: Tensor) -> Tensor:
        if outputs.size(-1) > 1:
            return outputs.argmax(-1)
        threshold = 0 if isinstance(self.loss, BinaryCrossEntropyLoss) else 0.5  # sigmoid(0) is 0.5
        return (outputs.squeeze(-1) > threshold).long()

    def _gradient_descent(self, parameters: Iterable[nn.Parameter]) -> GradientDescent:
        return GradientDescent(
            parameters, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
        )
