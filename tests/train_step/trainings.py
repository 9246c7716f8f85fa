"""The same net in plain modules, the same batches, and the step that autograd takes on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import manualgrad as mg


class Apply(nn.Module):
    """An activation's value, left to autograd."""

    def __init__(self, sigma: mg.Activation) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, z: Tensor) -> Tensor:
        return self.sigma.value(z)


def plain(model: nn.Module) -> nn.Sequential:
    """A copy of an MLP in modules that manualgrad has no part in."""
    modules: list[nn.Module] = []
    for layer in model.modules():
        if isinstance(layer, mg.Dense):
            linear = nn.Linear(layer.in_features, layer.out_features, dtype=layer.weight.dtype)
            linear.load_state_dict(layer.state_dict())
            modules += [linear, Apply(layer.activation)]
    return nn.Sequential(*modules)


def batches(steps: int, classes: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of 7 rows, 6 features and 4 outputs; every fifth is a ragged one of 3 rows."""
    for i in range(steps):
        r = 3 if i % 5 == 4 else 7
        x = torch.randn(r, 6, dtype=torch.float64)
        yield x, torch.randint(4, (r,)) if classes else torch.rand(r, 4, dtype=torch.float64)


def autograd_step(
    model: nn.Module, loss: nn.Module, optimizer: Any, x: Tensor, y: Tensor, max_norm: float | None = None
) -> Tensor:
    optimizer.zero_grad()
    value = loss(model(x), y)
    value.backward()
    if max_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return value.detach()


def assert_same(model: nn.Module, reference: nn.Module) -> None:
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
