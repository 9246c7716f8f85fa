"""`mg.TrainStep` inside of a Lightning module of one's own."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from manualgrad.lightning.engine import TrainStepEngine


EngineName = Literal["autograd", "train_step"]


class TrainStepModule(LightningModule):
    """A `LightningModule` whose training step `mg.TrainStep` may take: the same steps without an autograd graph, faster for small
    nets. Inherit from it, first where there are other classes, and call `take_step` in `training_step`:

        class Net(TrainStepModule):
            def __init__(self):
                super().__init__()
                self.model = nn.Sequential(nn.Linear(784, 30), nn.ReLU(), nn.Linear(30, 10))
                self.loss = nn.CrossEntropyLoss()

            def training_step(self, batch, batch_idx):
                loss, outputs = self.take_step(self.model, self.loss, *batch)
                self.log("train_loss", loss)
                return loss

            def configure_optimizers(self):
                return mg.GradientDescent(self.parameters(), lr=0.1)

    Steps are counted, learning rates scheduled, checkpoints written and resumed as ever.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._engine = TrainStepEngine()

    def take_step(
        self,
        model: nn.Module,
        loss: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        *,
        engine: EngineName = "train_step",
        max_norm: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Take one training step, all of it. Returns the loss (), which `training_step` must return, and the model's outputs
        before the update.

        Args:
            model, loss, max_norm: as for `mg.TrainStep`. `max_norm` clips where `Trainer(gradient_clip_val=...)` does with
                autograd, and batches n times as large do what `accumulate_grad_batches=n` does.
            engine: "autograd" computes loss and outputs as ever, and leaves the step, and clipping, to Lightning; so does a
                copy of the module, or one that no trainer trains.

        Raises:
            ValueError: before the first step, what a recorded step would leave out: several processes, manual optimization,
                `accumulate_grad_batches`, `gradient_clip_val`, methods and callbacks that need gradients.
            TypeError, ValueError, RuntimeError: what `mg.TrainStep` refuses: another model, loss or optimizer than it knows,
                a batch that does not fit, autocast.
        """
        self._engine.cost = None
        # A copy, such as `compare` makes, knows the trainer of this module, which does not train it.
        if engine == "autograd" or self._trainer is None or self.trainer.lightning_module is not self:
            outputs = model(inputs)
            return loss(outputs, targets), outputs
        if self._engine.checked is not self.trainer:
            self._check_engine()
        return self._engine.run(self.trainer, model, loss, max_norm, inputs, targets)

    def _check_engine(self) -> None:
        self._engine.check(self, TrainStepModule)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Autograd's, unless the step has been taken."""
        if self._engine.cost is None:
            super().backward(loss, *args, **kwargs)
        else:
            self._engine.check_loss(loss, type(self).__name__)
