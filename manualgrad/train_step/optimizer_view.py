"""What a training step reads from a `GradientDescent`: which parameters it updates, by which options, with which v."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from manualgrad.autograd.torch_state import hooks_of_optimizer, is_hooked, note_step
from manualgrad.optim.gradient_descent import GradientDescent
from manualgrad.optim.gradient_descent_checks import check_types


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
        # What the groups were found to be, and what follows from it: replaced as one, so that Ctrl-C cannot part them.
        self._seen: tuple[list[list[int]], list[bool], dict[nn.Parameter, int], tuple[int, ...]] = ([], [], {}, ())
        self._hooks = hooks_of_optimizer(optimizer)
        self._device_type = parameters[0].device.type
        self._is_captured = parameters[0].is_cuda
        self._rates: dict[int, tuple[float, Tensor]] = {}

    def check_unchanged(self) -> None:
        """Raises RuntimeError for what a step could not respect: step hooks, autocast."""
        if is_hooked(self._hooks):
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
        seen = self._seen
        if members != seen[0] or is_free != seen[1]:
            group_of = {p: i for i, group in enumerate(groups) for p in group["params"]}
            trained = tuple(1 + group_of.get(p, -1) if p.requires_grad else 0 for p in self._parameters)
            self._seen = seen = members, is_free, group_of, trained
        return seen[3]

    def options(self) -> list[tuple]:
        """The options of each group as Python's numbers, whatever numbers they are: NumPy's, fractions, tensors, which may
        change in place.

        On a GPU the learning rate is a tensor, which a captured graph reads.

        Raises:
            TypeError: one is no number.
        """
        options: list[tuple] = []
        for i, group in enumerate(self._optimizer.param_groups):
            lr, momentum, dampening, weight_decay, nesterov, maximize = _values(group)
            try:
                rate = self._rate(i, lr) if self._is_captured else float(lr)
                numbers = rate, float(momentum), float(dampening), float(weight_decay)
            except (TypeError, ValueError):
                self.check_options()
                raise
            options.append((*numbers, bool(nesterov), bool(maximize)))
        return options

    def check_options(self) -> None:
        """Raises TypeError for an option that is no number, before it is used: Python would also take "0.1" for one."""
        for group in self._optimizer.param_groups:
            check_types(group)

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
            own: Any = dict(zip(_NAMES, options[self._seen[2][p]], strict=True))
            velocity = self._optimizer.state[p].get("momentum_buffer") if own["momentum"] != 0 else None
            if velocity is None and own["momentum"] != 0:
                velocity = torch.zeros_like(p)
                is_first |= own["dampening"] != 0
                own["dampening"] = 0.0
            rules.append(Rule(p, own, velocity))
        return rules, is_first

    def keep(self, rules: list[Rule]) -> list[partial[Any]]:
        """What makes the v of these rules the optimizer's, as calls to be made with the update."""
        pairs = [(self._optimizer.state[p], velocity) for p, _, velocity in rules if velocity is not None]
        return [partial(dict.__setitem__, state, "momentum_buffer", velocity) for state, velocity in pairs]

    def has_stepped(self) -> None:
        """Let a scheduler know, which warns if it comes before the first step."""
        note_step(self._optimizer)

    def has(self, rules: list[Rule], addresses: list[int]) -> bool:
        """Whether the v in each of these rules is still the optimizer's, and at its address."""
        state = self._optimizer.state
        return all([state[p].get("momentum_buffer") is velocity for p, _, velocity in rules]) and addresses == [
            velocity.data_ptr() for _, _, velocity in rules if velocity is not None
        ]
