"""Observe one `Dense` during one optimizer step: its error, its gradient, its update, and its units that learn nothing."""

import weakref
from collections.abc import Callable
from functools import partial
from time import perf_counter_ns
from typing import Any

import torch
from torch import Tensor, nn

from manualgrad import equations
from manualgrad.activation.built_in import Activation, identity
from manualgrad.activation.idle_units import dead_units, is_rectifying, saturated_entries
from manualgrad.activation.torch_twins import twin_of
from manualgrad.layers.dense import Dense
from manualgrad.lightning.monitor.histograms import thinned
from manualgrad.optim.gradient_descent import GradientDescent


class LayerProbe:
    """Between `attach` and `detach`, hooks see each forward pass of the layer and each dC/da that reaches it.

    Nothing is copied to the host, and no factored gradient becomes dense. Squares are summed over calls and micro-batches,
    as if their rows were one batch.
    """

    def __init__(self, name: str, layer: Dense, saturated_below: float) -> None:
        self.name, self.layer, self.saturated_below = name, layer, saturated_below
        self._hook: Any = None

    def attach(self, with_samples: bool) -> None:
        self.first_call: int | None = None  # when, in ns: tells the order of the layers
        self.samples: dict[str, Tensor] | None = {} if with_samples else None  # for histograms
        self._delta_squared: Tensor | None = None
        self._grad_norm: Tensor | None = None
        self._weight_norm: Tensor | None = None
        self._update_norm: Tensor | None = None
        self._before: Tensor | None = None  # a copy of the weight, if the update is not known without it
        self._saturated: Tensor | None = None  # how many entries of sigma'(z), out of how many
        self._entries = 0
        self._dead: Tensor | None = None  # (m,)
        self._output: Callable[[], Tensor | None] = lambda: None
        self._hook = self.layer.register_forward_hook(self._after_forward, with_kwargs=True)

    def detach(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = self._before = None

    @torch.no_grad()
    def before_update(self, optimizer: torch.optim.Optimizer, loss_scale: float) -> None:
        """To be called when all gradients are there, clipped or not."""
        self._hook.remove()  # an optimizer such as LBFGS computes the loss again, with other weights
        weight = self.layer.weight
        if self._delta_squared is not None:
            self._delta_squared = self._delta_squared / loss_scale**2
        if self.samples is not None:
            self.samples["weight"] = thinned(weight.detach())
            if "delta" in self.samples:
                self.samples["delta"] = self.samples["delta"] / loss_scale
        if weight.grad is None:
            return
        if self.samples is not None:
            self.samples["gradient"] = thinned(weight.grad)
        self._grad_norm, self._weight_norm = _norm(weight.grad), _norm(weight)
        self._update_norm = torch.zeros_like(self._weight_norm)  # until the step is taken: a loss scaler may skip it
        if _group_that_implies_the_update(optimizer, weight) is None:
            self._before = weight.detach().clone()

    @torch.no_grad()
    def after_update(self, optimizer: torch.optim.Optimizer) -> None:
        """To be called right after the step, while gradients and learning rate are still those of the step."""
        weight = self.layer.weight
        if self._grad_norm is None:
            return
        if self._before is not None:
            self._update_norm = _norm(self._before.sub_(weight))  # w_before - w_after
            self._before = None
            return
        group = _group_that_implies_the_update(optimizer, weight)
        assert group is not None and weight.grad is not None
        moved_along = optimizer.state[weight]["momentum_buffer"] if group["momentum"] != 0 else weight.grad
        assert moved_along is not None  # `_grad_norm` was taken of it
        self._update_norm = _norm(moved_along) * group["lr"]

    def quantities(self) -> list[Tensor | None]:
        """As in a `LayerRecord`, but |delta| squared, so that processes can add theirs. None: not observed."""
        ratio = None
        if self._update_norm is not None and self._weight_norm is not None:
            ratio = torch.where(self._weight_norm > 0, self._update_norm / self._weight_norm, torch.nan)
        saturated = None if self._saturated is None else self._saturated / self._entries
        dead = None if self._dead is None else self._dead.double().mean()
        return [self._delta_squared, self._grad_norm, ratio, saturated, dead]

    def _after_forward(self, layer: Dense, arguments: tuple, keywords: dict[str, Any], a: Tensor) -> None:
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or a.numel() == 0:
            return  # validation, or the first pass of a checkpointed block
        if self.first_call is None:
            self.first_call = perf_counter_ns()
        kept, self._output = None, weakref.ref(a)
        if layer.activation is not identity:
            with torch.no_grad():
                from_output = layer.activation.from_output
                kept = a.detach() if from_output else _weighted_sum(layer, arguments, keywords, a.dtype)
                self._look_at_slopes(layer.activation, kept)
        if a.requires_grad:
            a.register_hook(partial(self._after_backward, activation=layer.activation, kept=kept))

    @torch.no_grad()
    def before_activation(self, module: nn.Module, arguments: tuple) -> None:
        """Called before an activation module runs: sigma of this layer, if it is given exactly what the layer has returned."""
        sigma, z = twin_of(module), self._output()
        is_given_z = z is not None and self.layer.activation is identity and bool(arguments) and arguments[0] is z
        if is_given_z and sigma is not None and z is not None:
            self._look_at_slopes(sigma, sigma.value(z) if sigma.from_output else z)

    def _look_at_slopes(self, activation: Activation, kept: Tensor) -> None:
        slope = activation.derivative(kept)
        if is_rectifying(activation):
            dead = dead_units(slope)
            self._dead = dead if self._dead is None else self._dead & dead
        else:
            saturated = saturated_entries(slope, self.saturated_below).sum()
            self._saturated = saturated if self._saturated is None else self._saturated + saturated
            self._entries += slope.numel()

    @torch.no_grad()
    def _after_backward(self, cost_gradient: Tensor, activation: Activation, kept: Tensor | None) -> None:
        if self._hook is None:  # a graph kept from a step that was watched
            return
        delta = equations.output_error(cost_gradient, activation, kept)
        squared = _norm(delta).double() ** 2 if delta.device.type != "mps" else _norm(delta) ** 2
        self._delta_squared = squared if self._delta_squared is None else self._delta_squared + squared
        if self.samples is not None:
            self.samples["delta"] = thinned(delta.flatten(0, -2) if delta.dim() > 1 else delta.unsqueeze(0))


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32))


def _weighted_sum(layer: Dense, arguments: tuple, keywords: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """z, computed again: the layer does not expose it."""
    a_below = arguments[0] if arguments else keywords["input"]
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return equations.weighted_sum(a_below.to(dtype), layer.weight.to(dtype), bias)


def _group_that_implies_the_update(optimizer: torch.optim.Optimizer, weight: Tensor) -> dict[str, Any] | None:
    """The weight's group, if w_after - w_before is lr times a tensor that exists anyway, so that w need not be copied."""
    if type(optimizer) not in (GradientDescent, torch.optim.SGD) or weight.dtype not in (torch.float32, torch.float64):
        return None  # a weight of low precision may stay where it is when it should move
    for group in optimizer.param_groups:
        if group["weight_decay"] == 0 and not group["nesterov"] and any(w is weight for w in group["params"]):
            return group
    return None
