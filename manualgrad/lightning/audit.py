"""A callback that compares gradients with autograd's during training."""

import math
import warnings
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from manualgrad.comparison.difference import check_tolerance
from manualgrad.comparison.result import Comparison
from manualgrad.lightning.step_comparison import compare_training_step


class GradientMismatchError(RuntimeError):
    """Gradients by hand and by autograd differ by more than rounding."""


class AutogradAudit(Callback):
    """Compares the gradients of the batch at hand with autograd's every `every_n_steps` steps, before the step is taken.

    Logs the largest relative difference as `autograd_gap`, and stops the training where a row of the comparison is not ok
    (see `mg.Comparison`). Training itself is not touched: weights, random states, metrics and gradients are, bit for
    bit, those of a run without the audit. An audited step costs about five times a plain one, and about twenty times where a
    gradient is so small that rounding has to be measured. With several processes each compares its own batch, the largest
    gap is logged, and all stop together. A step that cannot be run on copies is not audited, with a warning.

    Args:
        every_n_steps: how many optimizer steps lie between two audits; the first step is audited.
        tolerance: largest relative difference that counts as rounding; None for what `mg.compare` takes for the gradient's
            dtype, or under mixed precision for the lower one.

    Raises:
        ValueError: `every_n_steps` is not positive, `tolerance` is not a number >= 0; when training starts, the module
            optimizes manually; in an audited step, nothing is by hand.
        GradientMismatchError: a gradient differs by more than rounding, or is NaN or infinite throughout.
    """

    def __init__(self, every_n_steps: int = 100, tolerance: float | None = None) -> None:
        if not isinstance(every_n_steps, int) or every_n_steps < 1:
            raise ValueError(
                f"AutogradAudit expected `every_n_steps` to be a whole number of at least 1, got {every_n_steps!r}. "
                "Pass for example every_n_steps=100."
            )
        check_tolerance(tolerance, "AutogradAudit")
        self.every_n_steps = every_n_steps
        self.tolerance = tolerance
        self._audited_step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and not pl_module.automatic_optimization:
            raise ValueError(
                f"AutogradAudit expected a module with automatic optimization, got {type(pl_module).__name__} with "
                "automatic_optimization=False. Remove the callback, or return the loss from training_step."
            )
        self._audited_step = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step  # stands still while gradients accumulate
        if step % self.every_n_steps != 0 or step == self._audited_step:
            return
        self._audited_step = step
        comparison = self._compared(trainer, pl_module, batch, batch_idx)
        if not trainer.strategy.reduce_boolean_decision(comparison is not None, all=True):
            return
        assert comparison is not None
        if not math.isnan(comparison.max_relative_error):
            pl_module.log("autograd_gap", comparison.max_relative_error, on_step=True, sync_dist=True, reduce_fx="max")
        if not trainer.strategy.reduce_boolean_decision(comparison.ok, all=True):
            raise GradientMismatchError(self._message(comparison, f"at step {step} (epoch {trainer.current_epoch})"))

    def _compared(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> Comparison | None:
        """The comparison; None, with a warning, where the step cannot be run on copies: that must not end the training."""
        name = type(pl_module).__name__
        try:
            comparison = compare_training_step(pl_module, batch, batch_idx, self.tolerance)
        except Exception as error:
            warnings.warn(
                f"AutogradAudit could not compare {name}.training_step with autograd, and training goes on without. "
                f"{error}",
                stacklevel=2,
            )
            return None
        if comparison.anything_by_hand:
            return comparison
        raise ValueError(
            f"AutogradAudit expected a module with something by hand, got {name}.training_step, which calls no Dense and "
            "none of manualgrad's losses. Call mg.convert(model) first, or remove the callback."
        )

    def _message(self, comparison: Comparison, where: str) -> str:
        wrong = [row.name for row in comparison.rows if not row.ok and not row.shows_nothing]
        if comparison.ok:
            return f"AutogradAudit stopped training {where}: the gradients of another process differ from autograd's."
        if not wrong:
            return f"AutogradAudit stopped training {where}. {' '.join(comparison.caveats())}"
        return (
            f"AutogradAudit expected the gradients by hand to equal autograd's {where}, got a relative difference of "
            f"{comparison.max_relative_error:.1e} in {', '.join(wrong)}. "
            "Check the derivative of an activation or loss, or pass a larger tolerance."
        )
