"""What a step reads from its optimizer is read anew at every step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import manualgrad as mg


def exchanged(groups: list[dict[str, Any]]) -> None:
    groups[0]["params"], groups[1]["params"] = groups[1]["params"], groups[0]["params"]


def another_in_place(groups: list[dict[str, Any]]) -> None:
    groups[0]["params"][:], groups[1]["params"][:] = groups[1]["params"][:], groups[0]["params"][:]


def one_left_out(groups: list[dict[str, Any]]) -> None:
    groups[0]["params"][0] = groups[1]["params"].pop()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("change", [exchanged, another_in_place, one_left_out])
def test_parameters_that_change_their_group(change: Callable[[list[dict[str, Any]]], None], momentum: float) -> None:
    torch.manual_seed(0)
    model = mg.MLP([6, 5, 4], "sigmoid").double()
    twin = copy.deepcopy(model)
    both: list[Any] = []
    pairs: Any = ((model, mg.GradientDescent), (twin, torch.optim.SGD))
    for net, kind in pairs:
        first, second = list(net.parameters())[:2], list(net.parameters())[2:]
        both.append(kind([{"params": first}, {"params": second, "lr": 0.3}], lr=0.1, momentum=momentum))
    step = mg.TrainStep(model, nn.MSELoss(), both[0])
    for i in range(8):
        if i == 4:
            change(both[0].param_groups)
            change(both[1].param_groups)
        x, y = torch.randn(7, 6, dtype=torch.float64), torch.rand(7, 4, dtype=torch.float64)
        step(x, y)
        both[1].zero_grad()
        nn.functional.mse_loss(twin(x), y).backward()
        both[1].step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
