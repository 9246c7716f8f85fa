"""The losses that TrainStep computes from a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import manualgrad as mg


@pytest.mark.parametrize("loss", [mg.QuadraticLoss(), nn.MSELoss()], ids=str)
def test_an_empty_batch_has_no_mean_and_changes_no_weight(loss: nn.Module) -> None:
    model = mg.MLP([6, 4], "sigmoid")
    step = mg.TrainStep(model, loss, mg.GradientDescent(model.parameters(), lr=0.1))
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        assert step(torch.empty(0, 6), torch.empty(0, 4)).isnan()
    for p, was in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, was)
