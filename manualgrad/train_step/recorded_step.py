"""A training step laid out in memory, once for each shape of batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from manualgrad.autograd.torch_state import InferenceMode
from manualgrad.factored.clipping import Gradients
from manualgrad.train_step.optimizer_view import OptimizerView, Rule
from manualgrad.train_step.recording.cuda_graph import CapturedReplay, capture
from manualgrad.train_step.recording.kernel_call import Call
from manualgrad.train_step.recording.program import as_partials, replay_of, run_as_one
from manualgrad.train_step.recording.recorder import record
from manualgrad.train_step.recording.traced_number import NumberTracer, Options, structure


class Replay(Protocol):
    """Copies a batch to where the recorded kernels read it, and runs them."""

    def __call__(self, *batch: Tensor) -> None: ...

    def set_numbers(self, options: Options) -> None: ...


class RecordedStep:
    """Two recordings on the same memory, from a batch to its loss and gradients and from those to new weights.

    The second is made anew whenever the kernels of the update change, because an option comes or goes or a v is another
    tensor. Where options only take other values, as under a scheduler, its numbers follow. Every update runs as one call,
    so that Ctrl-C comes before or after it.

    Args:
        inputs, targets: the memory that every batch is copied to.
        meta_outputs: the model's outputs on the meta device.
        optimizer: what to read options and v from.
        gradients: (inputs, targets) -> loss, outputs, gradients, and the norm they were clipped by or None; with
            `is_dense=True` no gradient is factored.
    """

    outputs: Tensor
    _loss: Tensor
    _gradients: Gradients
    _norm: Tensor | None

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        meta_outputs: Tensor,
        optimizer: OptimizerView,
        gradients: Callable[..., tuple[Tensor, Tensor, Gradients, Tensor | None]],
    ) -> None:
        self._batch, self.meta_outputs, self._is_on_gpu = (inputs, targets), meta_outputs, inputs.is_cuda
        self._optimizer, self._make_gradients, self._make_update = optimizer, gradients, optimizer.update
        self._rerun: Callable[[], None] | None = None  # the gradients, on the batch that is there
        self._calls: list[Call] = []  # for the gradients; a captured graph has none
        self._replay: Replay | None = None  # of the whole step; or up to the gradients, where their norm is looked at
        self._to_weights: Replay | None = None  # what is left then
        self._options: Options | None = None  # that the numbers of the update follow
        self._written: list[Tensor] = []  # by kernels that do not count it as a change
        self._is_state_same: Callable[[], bool] = bool  # as when the update was recorded

    def run(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """One step on this batch: replayed, or else recorded. Returns a copy of its loss."""
        options = self._optimizer.options()
        if self._replay is None or not self._follows(options):
            with InferenceMode(False), torch.no_grad():  # what is laid out now has to serve outside it too
                self._record(inputs, targets, options)
        else:
            with InferenceMode(True):
                self._replay(inputs, targets)
                is_done = self._to_weights is None or self._is_norm_finite()
                if is_done and self._to_weights is not None:
                    self._to_weights()
            if not is_done:
                with InferenceMode(False), torch.no_grad():
                    self._step_densely(options)
        if self._written:
            increment_version(self._written)
        self._optimizer.has_stepped()
        return self._loss.clone()

    def _follows(self, options: Options) -> bool:
        """Set the numbers of the replay. False where its kernels are not those that these options need."""
        if not self._is_state_same():
            return False
        if options != self._options:
            if self._is_on_gpu or self._options is None or structure(options) != structure(self._options):
                return False
            self._optimizer.check_options()
            replay = self._to_weights or self._replay
            assert replay is not None
            self._options = None  # after Ctrl-C in the next line: record anew
            replay.set_numbers(options)
            self._options = options
        return True

    def _record(self, inputs: Tensor, targets: Tensor, options: Options) -> None:
        """A step, and the replays for those that follow."""
        self._optimizer.check_options()
        self._replay = None
        for x, new in zip(self._batch, (inputs, targets), strict=True):
            x.copy_(new)
        if self._rerun is None:
            self._record_gradients()
        else:
            self._rerun()
        if self._is_on_gpu:
            rules, is_first = self._optimizer.rules([p for p, _ in self._gradients], options)
            if is_first:
                self._make_update(self._gradients, rules)
            else:
                assert self._rerun is not None
                _, update_again = capture(self._make_update, self._gradients, rules)
                replay: Replay = CapturedReplay(self._batch, (self._rerun, update_again))
            run_as_one(self._optimizer.keep(rules))
        elif self._norm is not None and not self._is_norm_finite():
            return self._step_densely(options)
        else:
            calls, rules, is_first = self._update(self._gradients, options)
            if self._norm is None:
                replay = replay_of(self._batch, [*self._calls, *calls])
            else:
                replay, self._to_weights = replay_of(self._batch, self._calls), replay_of([], calls)
                self._to_weights.set_numbers(options)
            replay.set_numbers(options)
        if not is_first:
            self._is_state_same = self._optimizer.watch(rules)
            self._options, self._replay = options, replay

    def _record_gradients(self) -> None:
        made: tuple[Tensor, Tensor, Gradients, Tensor | None]
        if self._is_on_gpu:
            made, rerun = capture(self._make_gradients, *self._batch, is_pure=True)
        else:
            made, rerun = record(self._make_gradients, *self._batch)
            self._calls = rerun.calls
        self._loss, self.outputs, self._gradients, self._norm = made
        self._rerun = rerun

    def _update(self, gradients: Gradients, options: Options) -> tuple[list[Call], list[Rule], bool]:
        """Update the weights, as one. Returns its kernels, its rules, and whether they are for this step only."""
        tracer = NumberTracer()
        rules, is_first = self._optimizer.rules([p for p, _ in gradients], tracer.options(options))
        _, update = record(self._make_update, gradients, rules, tracer=tracer)
        for call in update.calls:
            call.set_numbers(options)
        run_as_one([*self._optimizer.keep(rules), *as_partials(update.calls)])
        self._written = self._optimizer.written_unnoticed(rules)
        return update.calls, rules, is_first

    def _is_norm_finite(self) -> bool:
        return self._norm is not None and math.isfinite(self._norm)

    def _step_densely(self, options: Options) -> None:
        """Of gradients with an infinite norm: inf times 0 makes NaN of some entries, which no product of factors does."""
        *_, gradients, _ = self._make_gradients(*self._batch, is_dense=True)
        self._update(gradients, options)
