"""What a training step reads from its optimizer: which parameters it updates, by which options, with which state."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn

from manualgrad.autograd.torch_state import hooks_of_optimizer, is_any_autocast_enabled, is_hooked, note_step
from manualgrad.train_step.update_rules import Rule, kind_of


_PLAIN = {bool, int, float}  # a tensor, or an array of NumPy's, may change in place
_requires_grad = attrgetter("requires_grad")


class OptimizerView:
    """The part of an optimizer that concerns these parameters, read anew at every step."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
        self._optimizer = optimizer
        self._kind = kind_of(optimizer)
        self.update = self._kind.update
        self._parameters = parameters
        # What the groups were found to be, and what follows from it: replaced as one, so that Ctrl-C cannot part them.
        self._seen: tuple[list[list[int]], list[bool], dict[nn.Parameter, int], tuple[int, ...]] = ([], [], {}, ())
        self._hooks = hooks_of_optimizer(optimizer)
        self._device_type = parameters[0].device.type
        self._is_captured = parameters[0].is_cuda
        self._rates: dict[int, tuple[float, Tensor]] = {}
        self._plain: tuple[list[tuple], list[tuple]] = (
            [],
            [],
        )  # options that were Python's numbers, and what was made of them
        # Let a scheduler know of a step: it warns if it comes before the first one.
        self.has_stepped = partial(note_step, optimizer)

    def check_unchanged(self) -> None:
        """Raises RuntimeError for what a step could not respect: step hooks, autocast."""
        if is_hooked(self._hooks):
            raise RuntimeError(
                "TrainStep expected an optimizer without step hooks, got one with some, which it would not call. "
                "Remove them, or train with autograd."
            )
        if is_any_autocast_enabled() and torch.is_autocast_enabled(self._device_type):
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
        given = [*map(self._kind.read, self._optimizer.param_groups)]
        before, options = self._plain
        if given == before:
            return options
        options = []
        for i, (lr, *others) in enumerate(given):
            numbers, flags = others[: -self._kind.flags], others[-self._kind.flags :]
            try:
                rate = self._rate(i, lr) if self._is_captured else float(lr)
                options.append((rate, *map(float, numbers), *map(bool, flags)))
            except (TypeError, ValueError):
                self.check_options()
                raise
        if {type(x) for values in given for x in values} <= _PLAIN:
            self._plain = given, options
        return options

    def check_options(self) -> None:
        """Raises TypeError for an option that is no number, before it is used: Python would also take "0.1" for one."""
        for group in self._optimizer.param_groups:
            self._kind.check(group)

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
            own: Any = dict(zip(self._kind.names, options[self._seen[2][p]], strict=True))
            state, first = self._kind.state(p, self._optimizer.state[p], own)
            is_first |= first
            rules.append(Rule(p, own, state))
        return rules, is_first

    def keep(self, rules: list[Rule]) -> list[partial[Any]]:
        """What makes the state of these rules the optimizer's, as calls to be made with the update."""
        return [partial(dict.update, self._optimizer.state[p], state) for p, _, state in rules]

    def written_unnoticed(self, rules: list[Rule]) -> list[Tensor]:
        """What the update writes into without counting it as a change, which autograd has to hear of."""
        return [x for p, _, state in rules for x in (p, *state.values())] if self._kind.is_fused else []

    def watch(self, rules: list[Rule]) -> Callable[[], bool]:
        """Says whether the state in each of these rules is still the optimizer's, and at its address."""
        places = [(self._optimizer.state[p], key, x) for p, _, state in rules for key, x in state.items()]
        if not places:
            return lambda: True
        tables, keys, tensors = zip(*places, strict=True)
        addresses, order = [*map(Tensor.data_ptr, tensors)], self._order_of_state()
        return lambda: (  # at every step: hence maps, which call no Python
            self._order_of_state() == order
            and all(map(is_, map(dict.get, tables, keys), tensors))
            and [*map(Tensor.data_ptr, tensors)] == addresses
        )

    def _order_of_state(self) -> list[int]:
        """Whose state is which: found without asking for a parameter, whose hash takes Python long."""
        state = self._optimizer.state
        return [*map(id, state), *map(id, state.values())]
