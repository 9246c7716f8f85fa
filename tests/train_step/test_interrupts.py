"""Ctrl-C at any line of the package: the step has happened or it has not, and nothing of it is left lying about."""

from __future__ import annotations

import copy
import gc
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import manualgrad as mg


PACKAGE = os.path.dirname(mg.__file__)
X, Y = torch.linspace(-1, 1, 15).view(5, 3).double(), torch.linspace(0, 1, 10).view(5, 2).double()


class Interrupt:
    """Raises KeyboardInterrupt before the n-th line of the package that runs inside."""

    def __init__(self, n: int) -> None:
        self.left, self.where = n, ""

    def __enter__(self) -> Interrupt:
        gc.disable()  # a finalizer could not pass the interrupt on
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
        gc.enable()

    def _trace(self, frame: Any, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self._trace


def made(kind: str) -> mg.TrainStep:
    torch.manual_seed(0)
    sigma: Any = "tanh"
    if kind == "live":
        sigma = mg.Activation("cube_to_interrupt", value=lambda z: z**3, derivative=lambda z: 3 * z * z)
    model = mg.MLP([3, 4, 2], sigma).double()
    options: dict[str, Any] = {"momentum": 0.9, "dampening": 0.5} if kind in ("momentum", "clipped") else {}
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1, weight_decay=0.01, **options)
    return mg.TrainStep(model, nn.MSELoss(), optimizer, max_norm=0.05 if kind == "clipped" else None)


def nothing(step: mg.TrainStep) -> None:
    pass


def another_rate(step: mg.TrainStep) -> None:
    step.optimizer.param_groups[0].update(lr=0.03, weight_decay=0.02)


def freeze(step: mg.TrainStep) -> None:
    next(iter(step.model.children())).requires_grad_(False)


def state(step: mg.TrainStep) -> list[Tensor]:
    buffers = [step.optimizer.state[p].get("momentum_buffer") for p in step.model.parameters()]
    tensors = [*step.model.parameters(), *(v for v in buffers if v is not None)]
    return [t.detach().clone() for t in tensors]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def interrupted(kind: str, steps_before: int, change: Callable[[mg.TrainStep], None], n: int) -> bool:
    """Whether the n-th line was there to be interrupted, in the step after so many others and a change."""
    step, twin = made(kind), made(kind)
    states: list[list[Tensor]] = []
    for i in range(steps_before + 3):
        if i == steps_before:
            change(twin)
        states.append(state(twin))
        twin(X * (i + 1), Y)
    for i in range(steps_before):
        step(X * (i + 1), Y)
    change(step)
    interrupt = Interrupt(n)
    try:
        with interrupt:
            step(X * (steps_before + 1), Y)
    except KeyboardInterrupt:
        pass
    else:
        return False
    assert not _get_current_dispatch_mode_stack(), interrupt.where
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled(), interrupt.where
    happened = same(state(step), states[steps_before + 1])
    assert happened or same(state(step), states[steps_before]), interrupt.where
    for i in range(steps_before + happened, steps_before + 2):
        step(X * (i + 1), Y)
        assert same(state(step), states[i + 1]), (interrupt.where, i)
    return True


@pytest.mark.parametrize("kind", ["plain", "momentum", "clipped", "live"])
@pytest.mark.parametrize(
    ("steps_before", "change", "stride"),
    [(0, nothing, 397), (3, nothing, 23), (3, another_rate, 47), (3, freeze, 397)],
    ids=["recording", "replaying", "another rate", "a frozen layer"],
)
def test_a_step_is_whole_or_has_not_begun(
    kind: str, steps_before: int, change: Callable[[mg.TrainStep], None], stride: int
) -> None:
    stride = int(os.environ.get("INTERRUPT_STRIDE", stride))
    n = 1
    while interrupted(kind, steps_before, change, n):
        n += stride
    assert n > 1


def test_copies_are_not_affected() -> None:
    step = made("momentum")
    step(X, Y)
    other = copy.deepcopy(step)
    with pytest.raises(KeyboardInterrupt), Interrupt(10):
        other(X, Y)
    assert same(state(step), state(other))
