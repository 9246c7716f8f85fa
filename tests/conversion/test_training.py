"""Converted models train as the originals do, and revert to the identical module tree."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import manualgrad as mg
from tests.conversion.models_to_convert import MODELS, identity_of


@pytest.mark.parametrize("build, inputs", MODELS.values(), ids=MODELS.keys())
def test_revert_gives_back_the_identical_module_tree(build, inputs):
    model = build()
    before, keys, order = identity_of(model), list(model.state_dict()), [id(p) for p in model.parameters()]

    assert mg.convert(model) is model
    assert list(model.state_dict()) == keys
    assert [id(p) for p in model.parameters()] == order
    assert mg.conversion_report(model).converted

    assert mg.revert(model) is model
    assert identity_of(model) == before


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("build, inputs", MODELS.values(), ids=MODELS.keys())
def test_a_converted_model_trains_to_the_same_weights(build, inputs, dtype, tolerance):
    original = build().to(dtype)
    with torch.random.fork_rng():
        converted = build().to(dtype)
    converted.load_state_dict(original.state_dict())
    start = copy.deepcopy(original.state_dict())
    assert mg.conversion_report(mg.convert(converted)).converted
    x = inputs(dtype)
    target = torch.randn_like(original(x))
    for model in (original, converted):
        torch.manual_seed(1)  # for dropout
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
        for _ in range(100):
            optimizer.zero_grad()
            F.mse_loss(model(x), target).backward()
            optimizer.step()
    for (name, expected), actual in zip(original.named_parameters(), converted.parameters(), strict=True):
        assert (expected - start[name]).abs().max() > 100 * tolerance, f"{name} has hardly been trained"
        difference = (actual - expected).abs().max() / expected.abs().max()
        assert difference <= tolerance, f"{name}: {difference}"


def test_a_converted_model_trains_to_the_same_weights_on_factored_gradients():
    build = lambda: nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))  # noqa: E731
    original, converted = build().double(), build().double()
    converted.load_state_dict(original.state_dict())
    mg.convert(converted)
    x, target = torch.randn(4, 256).double(), torch.randn(4, 256).double()
    optimizers = torch.optim.SGD(original.parameters(), lr=0.1), mg.GradientDescent(converted.parameters(), lr=0.1)
    for _ in range(20):
        for model, optimizer in zip((original, converted), optimizers, strict=True):
            optimizer.zero_grad()
            F.mse_loss(model(x), target).backward()
        assert isinstance(converted[0].weight.grad, mg.FactoredGradient)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(converted.state_dict(), original.state_dict(), rtol=1e-12, atol=1e-13)
