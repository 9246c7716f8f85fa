"""Compare a Lightning module's training step, differentiated by hand, with autograd."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import Precision
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from manualgrad.comparison.compare import compare
from manualgrad.comparison.result import Comparison


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
    step, tensors, precision = step_on_copies(module, batch, batch_idx)
    with precision.train_step_context():
        comparison = compare(step, loss_of, tuple(tensors), name, tolerance)
    return replace(comparison, rows=tuple(replace(row, name=plain_name(row.name)) for row in comparison.rows))


def step_on_copies(module: LightningModule, batch: Any, batch_idx: int) -> tuple[nn.Module, list[Any], Precision]:
    """The training step as a module, for `compare` and `trace`, which call copies of it: those log nothing. With it the leaves
    of the batch, with which it is called, and the precision of the module's trainer, in which they are."""
    trainer = module.trainer if module._trainer is not None else None
    precision = Precision() if trainer is None else trainer.precision_plugin
    tensors, structure = tree_flatten(precision.convert_input(batch))

    def run(copied: LightningModule, tensors: Sequence[Any]) -> Any:  # what it closes over is not copied
        if trainer is not None:
            copied.trainer = trainer  # which copies leave behind
        copied.log = copied.log_dict = _log_nothing  # type: ignore[method-assign]
        with isolate_rng():  # the same random numbers each time: numpy's too, which compare does not know of
            return copied.training_step(tree_unflatten(list(tensors), structure), batch_idx)

    return _TrainingStep(module, run), tensors, precision


class _TrainingStep(nn.Module):
    def __init__(self, module: LightningModule, run: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.run = module, run

    def forward(self, *tensors: Any) -> Any:
        return self.run(self.module, tensors)


def loss_of(output: Any, name: str) -> Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"Comparing {name}.training_step expected it to return the loss or a dict with it under 'loss', got {output!r}. "
            "Return the loss."
        )
    return loss


def _log_nothing(*args: Any, **kwargs: Any) -> None:
    pass


def plain_name(name: str) -> str:
    return name.removeprefix("module.")
