"""Trace a Lightning module's training step: every number of it, whatever batch and loss it has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from manualgrad.layers.activation_modules import ByHand
from manualgrad.layers.dense import Dense
from manualgrad.lightning.step_comparison import loss_of, plain_name, step_on_copies
from manualgrad.tracing.result import Trace
from manualgrad.tracing.trace import trace


def trace_training_step(module: LightningModule, batch: Any, batch_idx: int = 0) -> Trace:
    """`mg.trace` of `module.training_step(batch, batch_idx)` and the update that the trainer's optimizer makes of it.

    The inputs are the first tensor of the batch, the targets the next one (none if there is none), the outputs what the last
    layer by hand returned, and the loss all that the step makes of them. Runs on copies that log nothing.

    Raises what `mg.trace` raises, and ValueError or TypeError: no layer by hand is called, no loss is returned.
    """
    name = type(module).__name__
    step, leaves, precision = step_on_copies(module, batch, batch_idx)
    found = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not found:
        raise ValueError(
            f"Tracing {name}.training_step expected a batch with a tensor in it, got {type(batch).__name__}."
        )
    inputs, targets = found[0], found[1] if len(found) > 1 else found[0].new_empty(0)
    losses: list[Tensor] = []

    class Outputs(nn.Module):
        """The training step as a module that returns its last layer's outputs, and leaves the loss in `losses`."""

        def __init__(self) -> None:
            super().__init__()
            self.step = step

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: list[Tensor] = []
            hooks = [
                part.register_forward_hook(lambda *call: outputs.append(call[-1]))
                for part in self.modules()
                if isinstance(part, Dense | ByHand)
            ]
            try:
                losses[:] = [loss_of(self.step(*(inputs if leaf is found[0] else leaf for leaf in leaves)), name)]
            finally:
                for hook in hooks:
                    hook.remove()
            if not outputs:
                raise ValueError(f"Tracing {name}.training_step expected it to call a layer by hand, got none called.")
            return outputs[-1]

    def training_step(outputs: Tensor, targets: Tensor) -> Tensor:
        return losses[0]

    optimizers = module.trainer.optimizers if module._trainer is not None else []
    with precision.train_step_context():
        traced = trace(Outputs(), training_step, inputs, targets, optimizers[0] if optimizers else None)
    layers = tuple(replace(layer, name=plain_name(layer.name.removeprefix("step."))) for layer in traced.layers)
    return replace(traced, layers=layers)
