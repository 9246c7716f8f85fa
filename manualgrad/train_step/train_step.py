"""A training step without autograd: forward, loss, backpropagation, update, as the text has them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from manualgrad.activation.built_in import identity
from manualgrad.equations import backpropagated_error, output_error, weighted_sum
from manualgrad.factored.clipping import Gradients, clip_by_norm
from manualgrad.factored.gradient import FactoredGradient
from manualgrad.layers.dense_function import rows
from manualgrad.losses.loss import Loss
from manualgrad.train_step.layer_stack import LayerStack
from manualgrad.train_step.loss_by_hand import loss_by_hand, value_and_gradient
from manualgrad.train_step.optimizer_view import OptimizerView
from manualgrad.train_step.recorded_step import RecordedStep


MOST_SHAPES = 16  # of batches that a step keeps memory for; the oldest gives way


class TrainStep:
    """One step of training a stack of dense layers, with no autograd graph.

        step = mg.TrainStep(model, mg.QuadraticLoss(), mg.GradientDescent(model.parameters(), lr=3.0))
        for inputs, targets in batches:
            loss = step(inputs, targets)

    The same weights as `loss_function(model(inputs), targets).backward(); optimizer.step()`, up to rounding. It works on the
    model's own parameters and the optimizer's own state: evaluate, save, or go on with autograd at any time. Neither reads
    nor writes `.grad`.

    The first call with a batch of a new shape runs the four steps below and records their kernels, later calls replay them
    on the same memory (`manualgrad.train_step.recording`): they allocate nothing but the loss that they return. Not for use
    by two threads at once.

    Args:
        model: `MLP`, or `nn.Sequential` of `Dense`, `nn.Linear`, `nn.Flatten`, `nn.Identity`, `nn.Dropout` and activations such
            as `nn.ReLU`, nested as one likes. Frozen parameters (`requires_grad=False`) stay as they are.
        loss: one of manualgrad's, or plain `nn.MSELoss()`, `nn.CrossEntropyLoss()` or `nn.BCEWithLogitsLoss()`.
        optimizer: a `GradientDescent`, or `torch.optim`'s `SGD`, `Adam` or `AdamW` (on the CPU), with some of the model's
            parameters. Its options may change between calls.
        max_norm: as `torch.nn.utils.clip_grad_norm_` does, scale all gradients so that their common norm is at most this. May
            be set to another value between calls.

    Raises:
        TypeError, ValueError: if an argument is invalid; the message names it.
    """

    def __init__(
        self, model: nn.Module, loss: nn.Module, optimizer: Optimizer, *, max_norm: float | None = None
    ) -> None:
        _check(model)
        self.max_norm = max_norm
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self._loss = loss_by_hand(loss)
        self._stack = LayerStack(model, loss, self._loss)
        self._layers = self._stack.layers
        self._optimizer = OptimizerView(optimizer, self._stack.parameters)
        self._recorded: dict[tuple, RecordedStep] = {}
        self._last: RecordedStep | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "max_norm":
            value = _max_norm(value)
        elif name in ("model", "loss", "optimizer") and name in self.__dict__:
            raise AttributeError(
                f"TrainStep expected to keep the `{name}` that it was made for, got another. "
                "Make a new one: mg.TrainStep(model, loss, optimizer)."
            )
        super().__setattr__(name, value)

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """One step. Returns the loss before it: a new 0-dimensional tensor, detached and not read on the host.

        Raises:
            ValueError, TypeError: inputs or targets that do not fit, in shape, dtype or device.
            RuntimeError: the model or the loss is no longer what it was: a layer replaced, a parameter moved, a hook added.
            In each case before any weight has changed.
        """
        if not (isinstance(inputs, Tensor) and isinstance(targets, Tensor)):
            raise TypeError(
                f"TrainStep expected two tensors, inputs and targets, got {type(inputs).__name__} and {type(targets).__name__}. "
                "Convert them with torch.as_tensor(...)."
            )
        self._stack.check_unchanged()
        self._optimizer.check_unchanged()
        trained = self._optimizer.trained()
        key = (
            inputs.shape,
            targets.shape,
            inputs.dtype,
            targets.dtype,
            inputs.device,
            targets.device,
            trained,
            self.max_norm,
        )
        step = self._recorded.get(key)
        if step is None:
            step = self._lay_out(inputs, targets, trained)
            if len(self._recorded) == MOST_SHAPES:
                self._recorded.pop(next(iter(self._recorded)))
            self._recorded[key] = step
        self._last = step
        try:
            return step.run(inputs, targets)
        except (IndexError, RuntimeError):
            self._loss.check(step.meta_outputs, targets)  # a class index out of range: say so in its own words
            raise

    @property
    def outputs(self) -> Tensor:
        """A copy of the model's outputs in the last call, before the update."""
        if self._last is None:
            raise RuntimeError(
                "TrainStep expected a call before `outputs` is read, got none yet. Call step(inputs, targets) first."
            )
        return self._last.outputs.clone()

    def __repr__(self) -> str:
        shapes = [layer.weight.shape for layer in self._layers if layer.weight is not None]
        layers = f"{len(shapes)} layer{'s' * (len(shapes) > 1)} from {shapes[0][1]} to {shapes[-1][0]}"
        names = (type(x).__name__ for x in (self.model, self.loss, self.optimizer))
        return f"TrainStep({', '.join([*names, layers])}, max_norm={self.max_norm})"

    def __reduce__(self) -> tuple:
        return _made_anew, (self.model, self.loss, self.optimizer, self.max_norm)

    def _gradients(
        self, a: Tensor, y: Tensor, is_trained: dict[nn.Parameter, bool], max_norm: float | None, is_dense: bool = False
    ) -> tuple[Tensor, Tensor, Gradients, Tensor | None]:
        """The first three steps: the loss C, the outputs a^L, the gradients with their parameters, and their norm if it counts."""
        layers, inputs = self._layers, []
        kept: list[Tensor | None] = []

        # 1. Forward: z = w a + b, a = sigma(z).
        for layer in layers:
            w, b, sigma = layer.weight, layer.bias, layer.activation
            inputs.append(a)
            z = a.flatten(*layer.axes) if w is None else weighted_sum(a, w, b)
            if layer.dropout and a.numel():
                kept.append(mask := _dropout_mask(a, layer.dropout))
                a = z * mask
                continue
            a = sigma.value(z)
            kept.append(None if sigma is identity else a if sigma.from_output else z)

        # 2. Loss: C and dC/da.
        loss, a_gradient = value_and_gradient(self._loss, a, y)

        # 3. Backpropagation: delta = dC/da * sigma'(z); from it dC/dw, dC/db, and dC/da = w^T delta of the layer below.
        gradients: Gradients = []
        lowest = min(i for i, layer in enumerate(layers) if any(is_trained[p] for p in layer.parameters()))
        for i in reversed(range(lowest, len(layers))):
            w, b, sigma = layers[i].weight, layers[i].bias, layers[i].activation
            dropped = kept[i] if layers[i].dropout else None
            delta = output_error(a_gradient, sigma, kept[i]) if dropped is None else a_gradient * dropped
            if w is not None and is_trained[w]:
                gradients.append((w, FactoredGradient(rows(delta), rows(inputs[i]))))  # dC/dw = delta a^T
            if b is not None and is_trained[b]:
                ones = delta.new_ones((rows(delta).size(0), 1))  # dC/db = delta: b is a weight whose input is 1
                gradients.append((b, FactoredGradient(rows(delta), ones)))
            if i > lowest:
                a_gradient = delta.reshape(inputs[i].shape) if w is None else backpropagated_error(w, delta)
        if max_norm is None:
            return loss, a, gradients, None
        clipped, norm = clip_by_norm(gradients, max_norm, is_dense)
        return loss, a, clipped, None if is_dense else norm  # which entries take as it is, infinite too

    @torch.inference_mode(False)
    def _lay_out(self, inputs: Tensor, targets: Tensor, trained: tuple[int, ...]) -> RecordedStep:
        """Check a batch of a new shape and lay out the memory for all that follow."""
        outputs = self._stack.check_inputs(inputs)
        dtype = _check_targets(self._loss, outputs, targets, self._stack.device)
        if not any(trained):
            raise ValueError(
                "TrainStep expected an optimizer with some of the model's parameters that are not frozen, got one with none. "
                "Pass mg.GradientDescent(model.parameters(), lr=...), or unfreeze a layer with layer.requires_grad_()."
            )
        is_trained = {p: group > 0 for p, group in zip(self._stack.parameters, trained, strict=True)}
        return RecordedStep(
            torch.empty(inputs.shape, dtype=inputs.dtype, device=inputs.device),
            torch.empty(targets.shape, dtype=dtype, device=inputs.device),
            outputs,
            self._optimizer,
            partial(self._gradients, is_trained=is_trained, max_norm=self.max_norm, is_dense=self._stack.draws),
        )


def _dropout_mask(a: Tensor, p: float) -> Tensor:
    """0 with probability p, else 1 / (1 - p): drawn as `nn.Dropout` draws it."""
    if p == 1:
        return torch.zeros_like(a)
    return torch.empty_like(a).bernoulli_(1 - p).div_(1 - p)


def _made_anew(model: nn.Module, loss: nn.Module, optimizer: Optimizer, max_norm: float | None) -> TrainStep:
    return TrainStep(model, loss, optimizer, max_norm=max_norm)


def _check_targets(loss: Loss, outputs: Tensor, targets: Tensor, device: torch.device) -> torch.dtype:
    """Raises what `__call__` documents. Returns the dtype in which the loss takes the targets."""
    if targets.device != device:
        raise ValueError(
            f"TrainStep expected targets on the parameters' device {device}, got {targets.device}. "
            f"Move them with targets.to('{device}')."
        )
    loss.check(outputs, targets)
    if targets.is_floating_point() and targets.dtype != outputs.dtype:
        raise TypeError(
            f"TrainStep expected targets of the outputs' dtype {outputs.dtype}, got {targets.dtype}. "
            f"Convert them with targets.to({outputs.dtype})."
        )
    return outputs.dtype if targets.shape == outputs.shape else targets.dtype  # 0 and 1 given as integers


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"TrainStep expected `model` to be a torch.nn.Module, got {type(model).__name__}. "
            "Pass for example mg.MLP([784, 30, 10])."
        )


def _max_norm(given: Any) -> float | None:
    """Any real number > 0, NumPy's or a fraction too, as Python's."""
    try:
        number = None if given is None else float("nan" if isinstance(given, str | bool) else given)
    except (TypeError, ValueError):
        number = float("nan")
    if number is not None and not number > 0:
        raise ValueError(
            f"TrainStep expected `max_norm` to be a number > 0 or None, got {given}. Pass for example 1.0."
        )
    return number
