"""GradientDescent against torch.optim.SGD."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

import manualgrad as mg
from tests.optim.configurations import CONFIGURATIONS, SGD_INFO, Race, each_configuration


STEPS = 50


def test_pytorch_s_configurations_are_all_there() -> None:
    assert len(CONFIGURATIONS) == 9
    assert len(SGD_INFO.scheduler_inputs) == 7


@each_configuration
def test_follows_sgd(options: dict[str, Any]) -> None:
    race = Race(options)
    start = [p.detach().clone() for p in race.models[0].parameters()]
    for _ in range(STEPS):
        race.step()
        race.assert_even()
    assert all((p != q).any() for p, q in zip(race.models[0].parameters(), start, strict=True))


@each_configuration
def test_follows_sgd_with_factored_gradients(options: dict[str, Any]) -> None:
    layer, linear = mg.Dense(256, 160, dtype=torch.float64), nn.Linear(256, 160, dtype=torch.float64)
    linear.load_state_dict(layer.state_dict())
    ours = mg.GradientDescent(layer.parameters(), **copy.deepcopy(options))
    theirs = SGD(linear.parameters(), **copy.deepcopy(options))
    for _ in range(STEPS):
        x = torch.randn(3, 256, dtype=torch.float64)
        for module, optimizer in ((layer, ours), (linear, theirs)):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()
        assert isinstance(layer.weight.grad, mg.FactoredGradient)
    torch.testing.assert_close(layer.state_dict(), linear.state_dict(), rtol=1e-12, atol=1e-12)


@each_configuration
def test_follows_sgd_with_a_closure(options: dict[str, Any]) -> None:
    race = Race(options)
    for _ in range(STEPS):
        ours, theirs = race.step(closure=True)
        assert abs(ours - theirs) <= 1e-12
    race.assert_even()


@each_configuration
@pytest.mark.parametrize(
    "schedulers", SGD_INFO.scheduler_inputs, ids=["step", "linear", "two", "three", "constant", "polynomial", "plateau"]
)
def test_follows_sgd_under_learning_rate_schedulers(
    options: dict[str, Any], schedulers: list[Callable[[Optimizer], Any]]
) -> None:
    race = Race(options)
    made = [[make(optimizer) for make in schedulers] for optimizer in race.optimizers]
    for _ in range(STEPS):
        losses = race.step()
        for scheduler, loss in zip(
            [s for both in zip(*made, strict=True) for s in both], losses * len(schedulers), strict=True
        ):
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                scheduler.step(loss)
            else:
                scheduler.step()
    race.assert_even()
    ours, theirs = (float(optimizer.param_groups[0]["lr"]) for optimizer in race.optimizers)
    assert ours == pytest.approx(theirs, rel=1e-12)


@each_configuration
def test_state_dicts_are_exchanged_in_both_directions_mid_run(options: dict[str, Any]) -> None:
    race = Race(options)
    for _ in range(3):
        for _ in range(STEPS // 3):
            race.step()
        ours, theirs = (copy.deepcopy(optimizer.state_dict()) for optimizer in race.optimizers)
        assert ours["param_groups"][0].keys() == theirs["param_groups"][0].keys()
        assert ours["state"].keys() == theirs["state"].keys()
        assert all(ours["state"][i].keys() == theirs["state"][i].keys() for i in ours["state"])
        for optimizer, state in zip(race.optimizers, (theirs, ours), strict=True):
            for p in (p for group in optimizer.param_groups for p in group["params"]):
                optimizer.state.pop(p, None)
            optimizer.load_state_dict(state)
    for _ in range(STEPS // 3):
        race.step()
    race.assert_even()


@each_configuration
def test_a_checkpoint_continues_the_run(options: dict[str, Any]) -> None:
    """Saved and loaded with weights_only, into a fresh model and a fresh optimizer with other options."""
    race, buffer = Race(options), io.BytesIO()
    for _ in range(5):
        race.step()
    model, optimizer = race.models[0], race.optimizers[0]
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    model.load_state_dict({name: torch.zeros_like(p) for name, p in model.state_dict().items()})
    model.load_state_dict(loaded["model"])
    race.optimizers[0] = mg.GradientDescent(model.parameters(), lr=77.0)
    race.optimizers[0].load_state_dict(loaded["optimizer"])
    for _ in range(5):
        race.step()
    race.assert_even()


@each_configuration
@pytest.mark.parametrize("twin", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_of_model_and_optimizer_continue_the_run(options: dict[str, Any], twin: Callable) -> None:
    race = Race(options)
    for _ in range(5):
        race.step()
    model, optimizer = twin((race.models[0], race.optimizers[0]))
    assert optimizer.param_groups[0]["params"][0] is model[0].weight
    race.models, race.optimizers = (model, race.models[1]), [optimizer, race.optimizers[1]]
    for _ in range(5):
        race.step()
    race.assert_even()


@each_configuration
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(options: dict[str, Any], dtype: torch.dtype) -> None:
    race = Race(options, dtype)
    for _ in range(5):
        race.step()
    for ours, theirs in zip(*(model.parameters() for model in race.models), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
