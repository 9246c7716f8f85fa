"""A training step laid out in memory, once for each shape of batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from manualgrad.factored.clipping import Gradients
from manualgrad.train_step.optimizer_view import OptimizerView, Rule
from manualgrad.train_step.recording.cuda_graph import CapturedReplay, capture
from manualgrad.train_step.recording.program import replay_of
from manualgrad.train_step.recording.recorder import Recording, record
from manualgrad.train_step.recording.traced_number import NumberTracer, Options, structure


class Replay(Protocol):
    """Copies a batch to where the recorded kernels read it, and runs them."""

    def __call__(self, *batch: Tensor) -> None: ...

    def set_numbers(self, options: Options) -> None: ...


class RecordedStep:
    """Two recordings on the same memory, from a batch to its loss and gradients and from those to new weights, run as one.

    The second is made anew whenever the kernels of the update change, because an option comes or goes or a v is another
    tensor. Where options only take other values, as under a scheduler, its numbers follow.

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
        self._replay_gradients: Any = None
        self._replay: Replay | None = None  # of all: the batch copied, the gradients, the update
        self._loss: Tensor
        self.outputs: Tensor
        self._gradients: Gradients
        self._options: Options = []
        self._velocities: list[Rule] = []

    def run(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """One step on this batch. Returns a copy of its loss."""
        options = self._optimizer.options()
        if options != self._options and self._replay is not None:
            if structure(options) == structure(self._options) and not self._inputs.is_cuda:
                self._replay.set_numbers(options)
                self._options = options
            else:
                self._replay = None
        if self._replay is not None and (not self._velocities or self._optimizer.has(self._velocities)):
            with torch._C._InferenceMode(True):  # what torch.inference_mode() enters, for a third of its time
                self._replay(inputs, targets)
        else:
            with torch.inference_mode(False), torch.no_grad():  # what is laid out now has to serve outside it too
                self._step(inputs, targets, options)
        self._optimizer.has_stepped()
        return self._loss.clone()

    def _step(self, inputs: Tensor, targets: Tensor, options: Options) -> None:
        """A step, and a replay of it made for those that follow."""
        self._inputs.copy_(inputs)
        self._targets.copy_(targets)
        if self._replay_gradients is not None:
            self._replay_gradients()
        else:
            record_gradients = partial(capture, is_pure=True) if self._inputs.is_cuda else record
            made, self._replay_gradients = record_gradients(self._make_gradients, self._inputs, self._targets)
            self._loss, self.outputs, self._gradients = made
        parameters = [p for p, _ in self._gradients]
        rules, is_first = self._optimizer.rules(parameters, options)
        if is_first:
            self._make_update(self._gradients, rules)
            return
        batch = (self._inputs, self._targets)
        if self._inputs.is_cuda:
            _, replay_update = capture(self._make_update, self._gradients, rules)
            self._replay = CapturedReplay(batch, (self._replay_gradients, replay_update))
        else:
            with Recording(tracer := NumberTracer()) as update:
                self._make_update(self._gradients, self._optimizer.rules(parameters, tracer.options(options))[0])
            update.set_numbers(options)
            update()
            self._replay = replay_of(batch, [*self._replay_gradients.calls, *update.calls])
            self._replay.set_numbers(options)
        self._velocities = [rule for rule in rules if rule.velocity is not None]
        self._options = options
