"""TrainStep as captured CUDA graphs. Skipped where there is no device."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import manualgrad as mg


pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9, "dampening": 0.1}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}],
    ids=str,
)
@pytest.mark.parametrize("loss", [mg.QuadraticLoss(), nn.CrossEntropyLoss()], ids=str)
def test_replaying_a_graph_equals_autograd(loss: nn.Module, options: dict[str, Any], max_norm: float | None) -> None:
    model = mg.MLP([6, 20, 4], "gelu", device="cuda", dtype=torch.float64)
    reference = copy.deepcopy(model)
    ours = mg.GradientDescent(model.parameters(), lr=0.1, **options)
    sgd = torch.optim.SGD(reference.parameters(), lr=0.1, **options)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.98) for o in (ours, sgd)]
    step = mg.TrainStep(model, loss, ours, max_norm=max_norm)
    for i in range(60):
        r = 3 if i % 5 == 4 else 7  # a ragged batch
        x = torch.randn(r, 6, device="cuda", dtype=torch.float64)
        classes = isinstance(loss, nn.CrossEntropyLoss)
        y = torch.randint(4, (r,), device="cuda") if classes else torch.rand(r, 4, device="cuda", dtype=torch.float64)
        sgd.zero_grad()
        expected = loss(reference(x), y)
        expected.backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(reference.parameters(), max_norm)
        sgd.step()
        torch.testing.assert_close(step(x, y), expected.detach(), rtol=1e-12, atol=1e-12)
        for schedule in schedules:
            schedule.step()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_a_changed_rate_is_read_by_the_same_graph() -> None:
    model = mg.MLP([6, 4], device="cuda")
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    step = mg.TrainStep(model, mg.QuadraticLoss(), optimizer)
    x, y = torch.randn(5, 6, device="cuda"), torch.rand(5, 4, device="cuda")
    step(x, y)
    replay = next(iter(step._recorded.values()))._replay
    before = copy.deepcopy(model.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0
    step(x, y)
    assert next(iter(step._recorded.values()))._replay is replay
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_step_does_not_wait_for_the_device() -> None:
    model = mg.MLP([6, 20, 4], device="cuda")
    step = mg.TrainStep(model, mg.QuadraticLoss(), mg.GradientDescent(model.parameters(), lr=0.1), max_norm=1.0)
    x, y = torch.randn(5, 6, device="cuda"), torch.rand(5, 4, device="cuda")
    step(x, y)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")
