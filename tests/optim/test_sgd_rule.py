"""The update from factors in low precision, where a rounding more than `torch.optim.SGD`'s would show."""

from typing import Any

import pytest
import torch

import manualgrad as mg
from manualgrad.optim.sgd_rule import update


OPTIONS: dict[str, Any] = {
    "lr": 0.1,
    "momentum": 0.9,
    "dampening": 0,
    "weight_decay": 0,
    "nesterov": True,
    "maximize": False,
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("changed", [{}, {"weight_decay": 0.1}, {"maximize": True}, {"nesterov": False}], ids=str)
def test_low_precision_rounds_as_often_as_sgd(dtype: torch.dtype, changed: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(50, 70, generator=generator).to(dtype)
    options = {**OPTIONS, **changed}
    weights = {"factored": w.clone(), "dense": w.clone(), "truth": w.double()}
    velocities: dict[str, Any] = dict.fromkeys(weights)
    for _ in range(30):
        delta, a = (0.1 * torch.randn(3, k, generator=generator).to(dtype) for k in (50, 70))
        gradients = {
            "factored": mg.FactoredGradient(delta, a),
            "dense": delta.t() @ a,
            "truth": delta.double().t() @ a.double(),
        }
        for name in weights:
            velocities[name] = update(weights[name], gradients[name], velocities[name], options)
    errors = {name: float((weights[name].double() - weights["truth"]).norm()) for name in ("factored", "dense")}
    assert 0 < errors["factored"] <= 1.02 * errors["dense"]


def test_an_update_leaves_the_gradient_as_it_is() -> None:
    gradient = mg.FactoredGradient(torch.ones(2, 50, dtype=torch.bfloat16), torch.ones(2, 70, dtype=torch.bfloat16))
    w, velocity = torch.zeros(50, 70, dtype=torch.bfloat16), torch.zeros(50, 70, dtype=torch.bfloat16)
    update(w, gradient, velocity, OPTIONS)
    assert not gradient.is_dense and torch.equal(gradient.to_dense(), torch.full((50, 70), 2.0, dtype=torch.bfloat16))
    assert torch.equal(velocity, torch.full_like(w, 2.0)) and torch.equal(w, torch.full_like(w, -0.1 * (2 + 0.9 * 2)))
