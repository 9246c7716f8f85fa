"""Training steps to trace, and a real step beside the traced one."""

from typing import Any

import torch
from torch import Tensor, nn

import manualgrad as mg


X, Y = torch.linspace(-1, 1, 24).view(8, 3), torch.linspace(0, 1, 16).view(8, 2)


def step(model: nn.Module, loss: Any, inputs: Tensor, targets: Tensor, optimizer: Any) -> None:
    """A real training step, as a user writes it."""
    optimizer.zero_grad()
    loss(model(inputs), targets).backward()
    optimizer.step()


def assert_is_the_next_step(
    model: nn.Module, loss: Any, inputs: Tensor, targets: Tensor, optimizer: Any = None, step_optimizer: Any = None
) -> mg.Trace:
    """Trace, then step for real: the same bits. Returns the trace."""
    trace = mg.trace(model, loss, inputs, targets, optimizer)
    before = {name: p.clone() for name, p in model.named_parameters()}
    step(model, loss, inputs, targets, optimizer or step_optimizer or mg.GradientDescent(model.parameters(), lr=0.1))
    layers: dict[str, Any] = dict(model.named_modules())
    for traced in trace.layers:
        layer = layers[traced.name]
        assert torch.equal(traced.weight_after, layer.weight)
        assert layer.bias is None or (traced.bias_after is not None and torch.equal(traced.bias_after, layer.bias))
        for name in ("weight", "bias"):
            if f"{traced.name}.{name}" in before:
                assert torch.equal(getattr(traced, f"{name}_before"), before[f"{traced.name}.{name}"])
        assert torch.equal(traced.delta, traced.delta) and traced.delta.shape == traced.z.shape == traced.a.shape
    return trace


class Tower(nn.Module):
    """Dropout and batch normalisation between, and one layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = mg.Dense(3, 6, activation="gelu")
        self.between = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.4))
        self.again = mg.Dense(6, 6, activation="tanh")
        self.last = mg.Dense(6, 2, bias=False)
        self.unused = mg.Dense(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.between(self.first(x))
        hidden = hidden + self.again(hidden)
        return self.last(self.again(hidden))
