"""What a training step reads from a `GradientDescent`: which parameters it updates, by which options, with which v."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from manualgrad.optim.gradient_descent import GradientDescent


_NAMES = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
_values = itemgetter(*_NAMES)
_requires_grad = attrgetter("requires_grad")


class Rule(NamedTuple):
    """How one parameter is updated."""

    parameter: nn.Parameter
    options: Mapping[str, Any]
    velocity: Tensor | None  # v, if there is momentum


class OptimizerView:
    """The part of an optimizer that concerns these parameters, read anew at every step."""

    def __init__(self, optimizer: GradientDescent, parameters: list[nn.Parameter]) -> None:
        self._optimizer = optimizer
        self._parameters = parameters
        self._members: list[list[int]] = []
        self._group_of: dict[nn.Parameter, int] = {}
        self._is_free: list[bool] = []
        self._trained: tuple[int, ...] = ()
        self._hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
        self._device_type = parameters[0].device.type
        self._is_captured = parameters[0].is_cuda
        self._rates: dict[int, tuple[float, Tensor]] = {}

    def check_unchanged(self) -> None:
        """Raises RuntimeError for what a step could not respect: step hooks, autocast."""
        if self._hooks[0] or self._hooks[1]:
            raise RuntimeError(
                "TrainStep expected an optimizer without step hooks, got one with some, which it would not call. "
                "Remove them, or train with autograd."
            )
        if torch.is_autocast_enabled(self._device_type):
            raise RuntimeError(
                f"TrainStep expected to run outside torch.autocast, got a call inside: it computes in the parameters' dtype "
                f"{self._parameters[0].dtype}. Leave autocast, or convert the model with model.to(torch.bfloat16)."
            )

    def trained(self) -> tuple[int, ...]:
        """For each parameter, its group in the optimizer, counted from 1; 0 if it is frozen or in none, and not updated."""
        groups = self._optimizer.param_groups
        members = [[*map(id, group["params"])] for group in groups]  # also one for another, and from group to group
        is_free = [*map(_requires_grad, self._parameters)]
        if members != self._members or is_free != self._is_free:
            self._members, self._is_free = members, is_free
            self._group_of = {p: i for i, group in enumerate(groups) for p in group["params"]}
            self._trained = tuple(1 + self._group_of.get(p, -1) if p.requires_grad else 0 for p in self._parameters)
        return self._trained

    def options(self) -> list[tuple]:
        """The options of each group, as values to compare."""
        options = [_values(group) for group in self._optimizer.param_groups]
        for i, option in enumerate(options):
            lr = option[0]
            if self._is_captured:
                options[i] = (self._rate(i, lr), *option[1:])
            elif isinstance(lr, Tensor):
                options[i] = (lr.item(), *option[1:])
        return options

    def _rate(self, i: int, lr: float | Tensor) -> Tensor:
        """The learning rate of group i where a captured graph reads it."""
        if isinstance(lr, Tensor) and lr.is_cuda:
            return lr
        p, value = self._parameters[0], float(lr)
        before, rate = self._rates.get(i) or (value, torch.full((), value, dtype=p.dtype, device=p.device))
        if before != value:
            rate.fill_(value)
        self._rates[i] = value, rate
        return rate

    def rules(self, parameters: list[nn.Parameter], options: list[tuple]) -> tuple[list[Rule], bool]:
        """The rule for each parameter, and whether it is for one step only: the first v is g, whatever the dampening."""
        rules, is_first = [], False
        for p in parameters:
            own: Any = dict(zip(_NAMES, options[self._group_of[p]], strict=True))
            velocity = self._optimizer.state[p].get("momentum_buffer") if own["momentum"] != 0 else None
            if velocity is None and own["momentum"] != 0:
                velocity = self._optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
                is_first |= own["dampening"] != 0
                own["dampening"] = 0
            rules.append(Rule(p, own, velocity))
        return rules, is_first

    def has_stepped(self) -> None:
        """What `optimizer.step()` leaves for a scheduler, which warns if it comes before the first step."""
        self._optimizer._opt_called = True  # type: ignore[attr-defined]

    def has(self, rules: list[Rule]) -> bool:
        """Whether the v in each of these rules is still the optimizer's."""
        state = self._optimizer.state
        return all([state[p].get("momentum_buffer") is velocity for p, _, velocity in rules])
