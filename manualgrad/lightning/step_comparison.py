"""Compare a Lightning module's training step, differentiated by hand, with autograd."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import Precision
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from manualgrad.comparison.compare import compare
from manualgrad.comparison.result import Comparison
from manualgrad.dry_run import deep_copied
from manualgrad.factored.requests import pass_on_requests


def compare_training_step(
    module: LightningModule, batch: Any, batch_idx: int = 0, tolerance: float | None = None
) -> Comparison:
    """`mg.compare` for the loss of `module.training_step(batch, batch_idx)`: any module that Lightning optimizes
    automatically, any batch.

    In the precision of the module's trainer, if it has one. Runs on copies that log nothing: the module, its metrics and
    the random states are left as they were. A row for each parameter, and one for each floating point tensor of the
    batch: input, or input[0], input[1], ...

    Raises:
        ValueError: the module optimizes manually, so that its step has no single loss.
        TypeError: the step returned no loss.
    """
    name = type(module).__name__
    if not module.automatic_optimization:
        raise ValueError(
            f"Comparing {name}.training_step expected automatic optimization, got automatic_optimization=False. "
            "Use mg.compare(model, loss, inputs, targets) instead."
        )
    precision = module.trainer.precision_plugin if module._trainer is not None else Precision()
    tensors, structure = tree_flatten(precision.convert_input(batch))

    def run_step(copied: LightningModule, *tensors: Any) -> Any:
        if module._trainer is not None:
            copied.trainer = module.trainer  # which copies leave behind
        with isolate_rng():  # the same random numbers each time: numpy's too, which compare does not know of
            return copied.training_step(tree_unflatten(list(tensors), structure), batch_idx)

    with precision.train_step_context():
        comparison = compare(_TrainingStep(module, run_step), _loss_of, tuple(tensors), name, tolerance)
    return replace(
        comparison, rows=tuple(replace(row, name=row.name.removeprefix("module.")) for row in comparison.rows)
    )


class _TrainingStep(nn.Module):
    """The training step as a module of the batch's tensors. What `run_step` closes over is not copied with the module."""

    def __init__(self, module: LightningModule, run_step: Callable[..., Any]) -> None:
        super().__init__()
        self.module = deep_copied(module)
        pass_on_requests(module, self.module)
        self.module.log = self.module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
        self.run_step = run_step

    def forward(self, *tensors: Any) -> Any:
        return self.run_step(self.module, *tensors)


def _loss_of(output: Any, name: str) -> Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"Comparing {name}.training_step expected it to return the loss or a dict with it under 'loss', got {output!r}. "
            "Return the loss."
        )
    return loss
