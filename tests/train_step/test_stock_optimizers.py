"""TrainStep on the optimizers of `torch.optim`, and their own state: the same weights as autograd, in float64 to 1e-10."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn

import manualgrad as mg
from tests.train_step.trainings import autograd_step, batches


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def two_nets(sizes: list[int]) -> tuple[nn.Module, nn.Module]:
    model = mg.MLP(sizes, "tanh", dtype=torch.float64)
    return model, copy.deepcopy(model)


def assert_near(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


KINDS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "fused": True}),
    (torch.optim.Adam, {"weight_decay": 0.01}),
    (torch.optim.Adam, {"amsgrad": True, "foreach": True}),
    (torch.optim.AdamW, {"weight_decay": 0.1, "amsgrad": True, "fused": True}),
    (torch.optim.AdamW, {"betas": (0.8, 0.99), "eps": 1e-6, "maximize": True, "lr": 1e-3}),
]


@pytest.mark.parametrize("max_norm", [None, 0.1])
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=str)
def test_under_a_scheduler_with_a_frozen_layer_and_states_exchanged(
    kind: Any, options: dict[str, Any], max_norm: float | None
) -> None:
    """Every third step is autograd's; at step 100 each optimizer goes on from the other's state dict."""
    model, twin = two_nets([6, 20, 5, 4])
    optimizers = [kind(net.parameters(), **{"lr": 0.01, **options}) for net in (model, twin)]
    schedules = [torch.optim.lr_scheduler.OneCycleLR(o, 0.02, total_steps=201) for o in optimizers]
    step = mg.TrainStep(model, nn.MSELoss(), optimizers[0], max_norm=max_norm)
    for i, (x, y) in enumerate(batches(200)):
        if i in (50, 150):
            for net in (model, twin):
                list(net.children())[1].requires_grad_(i == 150)
                net.zero_grad()
        if i == 100:
            states = [copy.deepcopy(o.state_dict()) for o in optimizers]
            optimizers[0].load_state_dict(states[1])
            optimizers[1].load_state_dict(states[0])
        if i % 3 == 1:
            autograd_step(model, nn.MSELoss(), optimizers[0], x, y, max_norm)
        else:
            step(x, y)
        autograd_step(twin, nn.MSELoss(), optimizers[1], x, y, max_norm)
        for schedule in schedules:
            schedule.step()
    assert_near(model.state_dict(), twin.state_dict())
    assert_near(*(o.state_dict()["state"] for o in optimizers))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_weights_that_stay_factored_and_weights_laid_out_otherwise(kind: Any) -> None:
    """One is large enough for tiles of rows; one is a transposed matrix, one every second entry of another."""
    model: Any = nn.Sequential(nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 4)).double()
    twin = copy.deepcopy(model)
    model[0].weight = nn.Parameter(model[0].weight.detach().t().contiguous().t())
    wide = torch.zeros(4, 400, dtype=torch.float64)
    model[4].weight = nn.Parameter(wide[:, ::2].copy_(model[4].weight.detach()))
    optimizers = [kind(net.parameters(), lr=0.01, weight_decay=0.01) for net in (model, twin)]
    step = mg.TrainStep(model, nn.MSELoss(), optimizers[0])
    for x, y in batches(12):
        step(x, y)
        autograd_step(twin, nn.MSELoss(), optimizers[1], x, y)
    assert_near(model.state_dict(), twin.state_dict())
    assert not wide[:, 1::2].any()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_options_and_state_that_change_between_steps(kind: Any) -> None:
    model, twin = two_nets([6, 5, 4])
    both: list[Any] = []
    for net in (model, twin):
        first, *rest = net.parameters()
        both.append(kind([{"params": [first], "lr": 0.03, "betas": (0.5, 0.9)}, {"params": rest}], lr=0.01))
    step = mg.TrainStep(model, nn.MSELoss(), both[0])
    changes: list[dict[str, Any]] = [
        {"betas": (0.8, 0.95)},
        {"weight_decay": 0.1, "lr": torch.tensor(0.02, dtype=torch.float64)},
        {"weight_decay": 0, "eps": 0.1},
        {"maximize": True, "betas": (0.0, 0.9)},
    ]
    for i, (x, y) in enumerate(batches(60)):
        for optimizer, net in zip(both, (model, twin), strict=True):
            if i % 10 == 9 and i < 40:
                optimizer.param_groups[1].update(copy.deepcopy(changes[i // 10]))
            if i == 45:  # the state of one parameter begins anew
                optimizer.state[list(net.parameters())[2]].clear()
            if i == 50:
                optimizer.state[list(net.parameters())[1]]["exp_avg"].data = torch.ones(5, dtype=torch.float64)
        step(x, y)
        autograd_step(twin, nn.MSELoss(), both[1], x, y)
    assert_near(model.state_dict(), twin.state_dict())


def test_every_step_counts_as_a_change_of_weights_and_moments() -> None:
    model = mg.MLP([8, 512, 512, 3])
    optimizer = torch.optim.AdamW(model.parameters())
    step = mg.TrainStep(model, nn.MSELoss(), optimizer)
    for i in range(4):
        held = [*model.parameters(), *(x for p in model.parameters() if i for x in optimizer.state[p].values())]
        before = [t._version for t in held]
        step(torch.randn(2, 8), torch.randn(2, 3))
        assert all(t._version > was for t, was in zip(held, before, strict=True))


@pytest.mark.parametrize("max_norm", [None, 0.1])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropout_draws_the_numbers_that_autograd_draws(p: float, max_norm: float | None) -> None:
    layers = [nn.Dropout(0.1), nn.Linear(6, 8), nn.ReLU(), nn.Dropout(p), nn.Tanh(), nn.Linear(8, 4), nn.Dropout(p)]
    model = nn.Sequential(*layers).double()
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.Adam(net.parameters(), lr=0.01) for net in (model, twin)]
    step = mg.TrainStep(model, nn.MSELoss(), optimizers[0], max_norm=max_norm)
    for x, y in batches(40):
        before = torch.get_rng_state()
        step(x, y)
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        autograd_step(twin, nn.MSELoss(), optimizers[1], x, y, max_norm)
        assert torch.equal(torch.get_rng_state(), after)
    assert_near(model.state_dict(), twin.state_dict())


def test_dropout_that_is_switched_off_or_in_place() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    step = mg.TrainStep(model, nn.MSELoss(), torch.optim.Adam(model.parameters()))
    model.eval()
    with pytest.raises(RuntimeError, match="but `training` of the model was replaced. Nothing was updated."):
        step(torch.ones(2, 3), torch.ones(2, 3))
    model.train()
    step(torch.ones(2, 3), torch.ones(2, 3))
    model[1].inplace = True
    with pytest.raises(TypeError, match="expected dropout with inplace=False, got `1` with inplace=True"):
        mg.TrainStep(model, nn.MSELoss(), step.optimizer)


@pytest.mark.parametrize("name", ["RMSprop", "NAdam", "Adagrad", "LBFGS", "Own"])
def test_optimizers_that_it_refuses_by_name(name: str) -> None:
    class Own(torch.optim.AdamW):
        pass

    model = mg.MLP([3, 3])
    kind: Any = Own if name == "Own" else getattr(torch.optim, name)
    sentence = (
        f"TrainStep expected `optimizer` to be a GradientDescent, or torch.optim's SGD, Adam or AdamW, got {name}. "
        "Pass mg.GradientDescent(model.parameters(), lr=...), or train with autograd."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        mg.TrainStep(model, nn.MSELoss(), kind(model.parameters(), lr=0.1))


@pytest.mark.parametrize("option", ["differentiable", "capturable"])
def test_options_that_it_refuses_by_name(option: str) -> None:
    model = mg.MLP([3, 3])
    optimizer = torch.optim.Adam(model.parameters(), **{option: True})  # type: ignore[arg-type]
    sentence = (
        f"TrainStep expected an optimizer with {option}=False, got {option}=True. "
        "Make it without, or train with autograd."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        mg.TrainStep(model, nn.MSELoss(), optimizer)


def test_amsgrad_that_comes_too_late() -> None:
    model, _ = two_nets([6, 5, 4])
    optimizer = torch.optim.Adam(model.parameters())
    step = mg.TrainStep(model, nn.MSELoss(), optimizer)
    (x, y), *_ = batches(1)
    step(x, y)
    optimizer.param_groups[0]["amsgrad"] = True
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        RuntimeError, match="^TrainStep expected a state with `max_exp_avg_sq` for every parameter, got"
    ):
        step(x, y)
    assert_near(model.state_dict(), before)
