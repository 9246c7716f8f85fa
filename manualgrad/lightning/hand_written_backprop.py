"""A callback that trains any Lightning module with a backward pass by hand, and gives it back as it was."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from manualgrad.conversion.convert import convert, revert
from manualgrad.conversion.report import conversion_report
from manualgrad.extras import require
from manualgrad.factored.requests import ask_for, ask_no_more
from manualgrad.layers.activation_modules import ByHand
from manualgrad.layers.dense import Dense
from manualgrad.lightning.audit import AutogradAudit
from manualgrad.lightning.step_trace import trace_training_step


class HandWrittenBackprop(Callback):
    """Converts the module to a backward pass by hand (`mg.convert`) while `fit` runs, and reverts it at its end, after an
    exception and Ctrl-C too. Training takes the same steps, up to rounding; nothing in the module's code changes.

        Trainer(callbacks=[HandWrittenBackprop(audit_every_n_steps=100)]).fit(module)

    It converts before the strategy wraps the module and the optimizers are made, and again when training starts, for layers
    that the module makes in `setup` or `configure_model`. Only classes change, not the parameters: checkpoints of the training
    have the keys, and their hyperparameters the classes, that they would have without it, and load with or without it. What
    was converted or `Dense` before stays so.

    Args:
        factored: keep large dC/dw as factors, as `mg.keep_factored` does: less memory and time with few rows.
        audit_every_n_steps: compare with autograd every so many optimizer steps, as `AutogradAudit` does; None for never.
        page_every_n_epochs: in the first batch of every so many epochs, write the page of its training step (`mg.trace`) to
            `step_pages/epoch=E-step=S.html` in the log folder (`fast_dev_run` writes none); None for never. Its outputs are those
            of the last layer by hand. Needs the `demo` extra. What cannot be traced costs no training, but a warning.

    Raises:
        ValueError: a period is not positive; when training starts, nothing in the module can be by hand, or it optimizes
            manually and audit or page are asked for.
        GradientMismatchError: an audited gradient differs from autograd's.
        MissingExtraError: pages are asked for without Jinja2.
    """

    def __init__(
        self,
        factored: bool = False,
        audit_every_n_steps: int | None = None,
        page_every_n_epochs: int | None = None,
    ) -> None:
        periods = {"audit_every_n_steps": audit_every_n_steps, "page_every_n_epochs": page_every_n_epochs}
        for name, period in periods.items():
            if period is not None and (type(period) is not int or period < 1):
                raise ValueError(
                    f"HandWrittenBackprop expected `{name}` to be a whole number of at least 1 or None, got {period!r}. "
                    f"Pass for example {name}=10."
                )
        if page_every_n_epochs is not None:
            require("jinja2", extra="demo", purpose="HandWrittenBackprop(page_every_n_epochs=...)")
        self.factored, self.page_every_n_epochs = factored, page_every_n_epochs
        self.audit = AutogradAudit(audit_every_n_steps) if audit_every_n_steps is not None else None
        self._before: set[str] | None = None  # what was converted before this callback came; None: nothing to revert
        self._pages_fail = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not pl_module.automatic_optimization and (self.audit or self.page_every_n_epochs):
            raise ValueError(
                f"HandWrittenBackprop expected a module with automatic optimization, got {type(pl_module).__name__} with "
                "automatic_optimization=False, whose step has no single loss. Leave audit_every_n_steps and "
                "page_every_n_epochs out, or return the loss from training_step."
            )
        self._revert(pl_module)  # where the end of an earlier fit was itself cut off
        self._before, self._pages_fail = _converted(pl_module), False
        # In place of this callback's own hook, which Lightning does not call for checkpoints of weights alone.
        pl_module.on_save_checkpoint = partial(_save_unconverted, pl_module)  # type: ignore[method-assign]
        self._convert(pl_module)
        if self.audit is not None:
            self.audit.setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._convert(pl_module)
        report = conversion_report(pl_module)
        if not any(isinstance(module, Dense | ByHand) for module in pl_module.modules()):
            why = "; ".join(f"{row.name}: {row.note}" for row in report[:3])
            raise ValueError(
                "HandWrittenBackprop expected a module with linear layers or activations of torch.nn, got "
                f"{type(pl_module).__name__}, in which nothing can be by hand{f' ({why})' if why else ''}. Remove the callback."
            )
        rank_zero_info(f"HandWrittenBackprop: {report.summary} Everything else is left to autograd.")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.audit is not None:
            self.audit.on_train_batch_start(trainer, pl_module, batch, batch_idx)
        period = self.page_every_n_epochs
        if period is not None and batch_idx == 0 and trainer.current_epoch % period == 0 and not self._pages_fail:
            self._write_page(trainer, pl_module, batch, batch_idx)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._revert(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._revert(pl_module)

    def _convert(self, pl_module: LightningModule) -> None:
        convert(pl_module)
        for module in pl_module.modules() if self.factored else ():
            if isinstance(module, Dense):
                ask_for(module.weight, type(self).__name__)

    def _revert(self, pl_module: LightningModule) -> None:
        if self._before is None:
            return
        for name in _converted(pl_module) - self._before:
            try:
                revert(pl_module.get_submodule(name))
            except RuntimeError as error:  # it must not hide why the training has ended
                rank_zero_warn(f"HandWrittenBackprop leaves {name!r} converted. {error}")
        for module in pl_module.modules():
            if isinstance(module, nn.Linear):
                ask_no_more(module.weight, type(self).__name__)
        vars(pl_module).pop("on_save_checkpoint", None)
        self._before = None

    def _write_page(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        folder = trainer.log_dir  # every process must ask, and take the step: it may wait for the others
        path = Path(folder or ".", "step_pages", f"epoch={trainer.current_epoch}-step={trainer.global_step}.html")
        try:
            trace = trace_training_step(pl_module, batch, batch_idx)
            if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                path.parent.mkdir(parents=True, exist_ok=True)
                trace.to_html(path, title=f"Step {trainer.global_step} of the training, explained")
        except Exception as error:
            self._pages_fail = True
            rank_zero_warn(
                f"HandWrittenBackprop cannot show a training step of this module, and goes on without. {error}"
            )


def _converted(model: nn.Module) -> set[str]:
    report = conversion_report(model)
    return {*report.converted, *report.converted_activations}


def _save_unconverted(pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """The module's own hook. Then modules in the checkpoint, such as hyperparameters, become what they are without `convert`."""
    type(pl_module).on_save_checkpoint(pl_module, checkpoint)
    for key, value in checkpoint.items():
        if any(isinstance(leaf, nn.Module) and _converted(leaf) for leaf in tree_leaves(value)):
            checkpoint[key] = tree_map(_reverted_copy, value)


def _reverted_copy(x: Any) -> Any:
    """A module as it is without `convert`, in the same memory; anything else as it is."""
    if not isinstance(x, nn.Module):
        return x
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in x.parameters()}
    return revert(copy.deepcopy(x, memo))
