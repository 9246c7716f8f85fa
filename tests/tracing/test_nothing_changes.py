"""trace() changes nothing: the model, the optimizer, the loss, random numbers, the mode."""

import gc
import random
import re
import weakref
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from tests.tracing.traced import Tower, X, Y, assert_is_the_next_step, step


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_where_gradients_are_off(mode: Any) -> None:
    model = mg.MLP([3, 5, 2], "tanh")
    expected = mg.trace(model, nn.MSELoss(), X, Y).to_dict()
    with mode():
        trace = mg.trace(model, nn.MSELoss(), X.clone(), Y.clone())
    assert trace.to_dict() == expected
    assert not any(x.is_inference() for x in vars(trace.layers[0]).values() if isinstance(x, Tensor))


def everything(model: nn.Module, optimizer: Any) -> list[Any]:
    """All that a step could change, for comparison by ==."""
    tensors = [*model.parameters(), *model.buffers()]
    hooks = [len(h) for m in model.modules() for name, h in vars(m).items() if name.endswith("_hooks")]
    return [
        [(id(x), x._version, x.tolist(), x.requires_grad) for x in tensors],
        [(id(p.grad), None if p.grad is None else p.grad.tolist()) for p in model.parameters()],
        [(type(m), m.training, "forward" in vars(m)) for m in model.modules()],
        hooks,
        repr(optimizer.state_dict()),
        torch.get_rng_state().tolist(),
        random.getstate(),
        [str(x) for x in numpy.random.get_state()],
    ]


class Noisy(Tower):
    """Draws from Python's and NumPy's random numbers too, and can fail at the end."""

    fails = False

    def forward(self, x: Tensor) -> Tensor:
        outputs = super().forward(x + random.random() + numpy.random.rand())
        if self.fails:
            raise ArithmeticError("the model fails")
        return outputs


def failing_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    raise ArithmeticError("the loss fails")


def failing_backward(outputs: Tensor, targets: Tensor) -> Tensor:
    outputs.register_hook(lambda gradient: 1 / 0)
    return outputs.mean()


@pytest.mark.parametrize("fails", [None, "model", failing_loss, failing_backward, lambda a, y: a.tolist()])
def test_nothing_is_changed_also_when_something_fails(fails: Any) -> None:
    model, loss = Noisy(), nn.MSELoss()
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1, momentum=0.9)
    step(model, loss, X, Y, optimizer)
    seen: list[Any] = []
    model.first.register_forward_hook(lambda module, args, output: seen.append(output))
    model.fails = fails == "model"
    before, inputs = everything(model, optimizer), X.clone()
    if fails is None:
        mg.trace(model, loss, inputs, Y, optimizer)
    else:
        with pytest.raises((ArithmeticError, ValueError)):
            mg.trace(model, fails if callable(fails) else loss, inputs, Y, optimizer)
    assert everything(model, optimizer) == before
    assert torch.equal(inputs, X) and not inputs.requires_grad


def test_a_loss_with_parameters_and_memory() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))
            self.calls = nn.Buffer(torch.zeros(()))

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            self.calls.add_(1)
            return (self.scale * (outputs - targets) ** 2).mean()

    model, loss = mg.MLP([3, 5, 2], "tanh"), Weighted()
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
    for given, name in ((loss, "Weighted"), (loss.forward, "forward")):
        trace = mg.trace(model, given, X, Y, optimizer)
        assert trace.loss_name == name
    assert loss.calls == 0 and loss.scale.grad is None
    assert_is_the_next_step(model, loss, X, Y, optimizer)


def test_a_penalty_on_the_model_s_own_weights_is_refused_and_leaves_no_gradient() -> None:
    model = mg.MLP([3, 5, 2], "tanh")
    message = (
        "trace expected a loss of the outputs and targets alone, got one that reads parameters of the model itself, where the "
        "trace has copies. Take a penalty on weights out of it, for example in favour of weight_decay."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        mg.trace(model, lambda a, y: (a - y).square().mean() + model[0].weight.square().sum(), X, Y)
    assert all(p.grad is None for p in model.parameters())


def test_another_tensor_that_the_loss_reads_keeps_its_gradient() -> None:
    scale = torch.ones(2, requires_grad=True)
    scale.grad = before = torch.ones(2)
    trace = mg.trace(mg.MLP([3, 5, 2], "tanh"), lambda a, y: (scale * (a - y)).square().mean(), X, Y)
    assert scale.grad is before and before.tolist() == [1, 1]
    assert all(layer.trained and layer.delta.any() for layer in trace.layers)


def test_the_trace_does_not_follow_what_happens_later() -> None:
    model, inputs = mg.MLP([3, 5, 2], "tanh"), X.clone()
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    trace = mg.trace(model, nn.MSELoss(), inputs, Y, optimizer)
    before = trace.to_dict()
    inputs.zero_()
    step(model, nn.MSELoss(), X, Y, optimizer)
    assert trace.to_dict() == before
    tensors = [x for layer in trace.layers for x in vars(layer).values() if isinstance(x, Tensor)]
    assert not any(x.requires_grad or x.grad_fn for x in tensors)


class Remembering(nn.Module):
    """Keeps its outputs, history and all, which copy.deepcopy refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mg.Dense(3, 2)
        self.last: Any = None
        self.all: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.layer(x)
        self.all.append(self.last)
        return self.last


@pytest.mark.parametrize("examine", [mg.trace, mg.compare])
def test_a_model_that_keeps_its_last_output(examine: Callable[..., Any]) -> None:
    model = Remembering()
    last = model(X)
    examine(model, nn.MSELoss(), X, Y)
    assert model.last is model.all[0] is last and len(model.all) == 1 and last.grad_fn is not None
    assert_is_the_next_step(model, nn.MSELoss(), X, Y)


def test_the_copy_is_gone_when_trace_returns() -> None:
    class Remembered(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            copies.append(weakref.ref(self))
            return x

    copies: list[Any] = []
    model = nn.Sequential(mg.MLP([3, 4, 2], "tanh"), Remembered())
    gc.disable()
    try:
        mg.trace(model, nn.MSELoss(), X, Y)
        assert len(copies) == 1 and copies[0]() is None
    finally:
        gc.enable()
