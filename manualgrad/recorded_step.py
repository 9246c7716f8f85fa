"""A training step laid out in memory, once for each shape of batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from manualgrad.clipping import Gradients
from manualgrad.optimizer_view import OptimizerView, Rule
from manualgrad.recording import record


class RecordedStep:
    """Two recordings on the same memory: from a batch to its loss and gradients, and from those to new weights.

    The second is made anew whenever the optimizer's options have changed, or a v is another tensor.

    Args:
        inputs, targets: the memory that every batch is copied to.
        form: what the model gives, without values.
        optimizer: what to read options and v from.
        gradients: (inputs, targets) -> loss, outputs and gradients.
        update: (gradients, rules) changes the parameters in place.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        form: Tensor,
        optimizer: OptimizerView,
        gradients: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Gradients]],
        update: Callable[[Gradients, list[Rule]], None],
    ) -> None:
        self._inputs, self._targets, self.form = inputs, targets, form
        self._optimizer = optimizer
        self._make_gradients, self._make_update = gradients, update
        self._replay_gradients: Callable[[], None] | None = None
        self._replay_update: Callable[[], None] | None = None
        self._loss: Tensor
        self.outputs: Tensor
        self._gradients: Gradients
        self._options: list[tuple] | None = None
        self._velocities: list[Rule] = []

    def run(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """One step on this batch. Returns a copy of its loss."""
        options = self._optimizer.options()
        is_recorded = options == self._options and (not self._velocities or self._optimizer.has(self._velocities))
        with torch._C._InferenceMode(True):  # what torch.inference_mode() enters, for a third of its time
            self._inputs.copy_(inputs)
            self._targets.copy_(targets)
            if self._replay_gradients is not None:
                self._replay_gradients()
            if is_recorded:
                self._replay_update()  # type: ignore[misc]
        if not is_recorded:
            self._record(options)
        self._optimizer.has_stepped()
        return self._loss.clone()

    def _record(self, options: list[tuple]) -> None:
        device = self._inputs.device
        if self._replay_gradients is None:
            made, replay = record(self._make_gradients, self._inputs, self._targets, device=device, is_pure=True)
            (self._loss, self.outputs, self._gradients), self._replay_gradients = made, replay
        self._options = None
        rules, is_first = self._optimizer.rules([p for p, _ in self._gradients], options)
        _, self._replay_update = record(self._make_update, self._gradients, rules, device=device)
        self._velocities = [rule for rule in rules if rule.velocity is not None]
        self._options = None if is_first else options
