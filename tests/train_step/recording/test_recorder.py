"""A recording repeats the kernels of a computation on the same memory, and nothing else."""

from __future__ import annotations

import gc
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import manualgrad as mg
from manualgrad.train_step.recording.recorder import live, record


def test_a_replay_computes_anew_on_the_same_memory() -> None:
    x, w = torch.randn(4, 3), torch.randn(3, 3)

    def computation(x: Tensor) -> Tensor:
        z = torch.log1p((x @ w.t() * 2).abs()).unsqueeze(0)
        z.squeeze_(0)
        w.add_(0.5)
        return z.softmax(-1).cumsum(-1)

    result, replay = record(computation, x)
    at = result.data_ptr()
    for _ in range(3):
        x.copy_(torch.randn(4, 3))
        before = w.clone()
        replay()
        after = w.clone()
        w.copy_(before)
        torch.testing.assert_close(result, computation(x), rtol=0, atol=0)
        torch.testing.assert_close(w, after, rtol=0, atol=0)
    assert result.data_ptr() == at


def test_what_is_live_is_decided_anew() -> None:
    x = torch.ones(3)
    result, replay = record(lambda: live(lambda t: -t if t.sum() > 0 else t * 3, x))
    torch.testing.assert_close(result, -torch.ones(3))
    x.fill_(-2)
    replay()
    torch.testing.assert_close(result, torch.full((3,), -6.0))


def test_reading_a_value_is_refused() -> None:
    x = torch.ones(3)
    with pytest.raises(
        RuntimeError,
        match="^A recording expected code that leaves values on the device, got one that reads a tensor as a Python number. "
        "Call it through `live`.$",
    ):
        record(lambda: x * x.sum().item())


class Kernels(TorchDispatchMode):
    """Counts the tensors that kernels make: those that are neither arguments nor views of them."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Any] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        if not operation._schema.is_mutable and not operation.is_view and not isinstance(result, float):
            self.made.append(operation)
        return result


OPTIONS: list[dict[str, Any]] = [{}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, {"maximize": True}]
LOSSES = [mg.QuadraticLoss(), nn.MSELoss(), nn.CrossEntropyLoss(), mg.BinaryCrossEntropyLoss()]


def steps(loss: nn.Module, options: dict[str, Any], activation: str, max_norm: float | None) -> Any:
    model = mg.MLP([12, 9, 7, 4], activation)
    step = mg.TrainStep(model, loss, mg.GradientDescent(model.parameters(), lr=0.1, **options), max_norm=max_norm)
    x = torch.randn(5, 12)
    y = torch.randint(4, (5,)) if isinstance(loss, nn.CrossEntropyLoss) else torch.rand(5, 4)
    step(x, y)
    return lambda: step(x, y)


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_after_the_first_call_only_the_loss_is_made(
    loss: nn.Module, options: dict[str, Any], max_norm: float | None
) -> None:
    for activation in mg.activations:
        step = steps(loss, options, activation, max_norm)
        with Kernels() as kernels:
            step()
        assert [str(kernel) for kernel in kernels.made] == ["aten.clone.default"]


def test_the_allocator_sees_only_the_loss() -> None:
    for activation in mg.activations:
        for max_norm in (None, 1.0):
            step = steps(mg.QuadraticLoss(), {"momentum": 0.9}, activation, max_norm)
            with torch.profiler.profile(profile_memory=True) as profile:
                step()
            made = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]" and e.nbytes() > 0]
            assert [e.nbytes() for e in made] == [4], (activation, max_norm)


def test_no_python_objects_pile_up() -> None:
    for options in OPTIONS:
        step = steps(mg.QuadraticLoss(), options, "sigmoid", None)
        for _ in range(20):
            step()
        gc.collect()
        before = sys.getallocatedblocks()
        for _ in range(1000):
            step()
        gc.collect()
        assert sys.getallocatedblocks() - before < 100, options  # one object a step would be 1000
