"""Dense layers in training: accumulation, tied weights, hooks, autocast, copies, state dicts, parametrizations."""

import copy
import io
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.autograd import gradgradcheck

import manualgrad as mg
from tests.layers.twins import TWINS, double


def test_gradients_accumulate() -> None:
    layer, x = mg.Dense(3, 2, activation="tanh"), torch.randn(4, 3)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    once = layer.weight.grad.clone()
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, 2 * once)


def test_a_tied_weight_collects_both_gradients() -> None:
    w, x = double(3, 3), double(4, 3)
    ours = mg.dense(mg.dense(x, w, None, "tanh"), w.t())
    theirs = torch.tanh(x @ w.t()) @ w
    found, expected = (torch.autograd.grad(y.sum(), (x, w)) for y in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)


def test_hooks_are_called() -> None:
    layer, x, seen = mg.Dense(3, 2), torch.randn(4, 3, requires_grad=True), []
    layer.register_forward_hook(lambda module, inputs, output: seen.append("forward"))
    layer.register_full_backward_hook(lambda module, inputs, outputs: seen.append("backward"))
    layer.weight.register_hook(lambda gradient: seen.append("weight"))
    layer.weight.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    layer(x).sum().backward()
    assert sorted(seen) == ["accumulated", "backward", "forward", "weight"]


# Autocast


@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["identity", "relu", "sigmoid"])
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_equals_linear_under_autocast(
    name: str, dtype: torch.dtype, input_dtype: torch.dtype, backward_inside: bool
) -> None:
    linear = nn.Linear(5, 4)
    layer = mg.Dense.from_linear(linear, name)
    x = torch.randn(6, 5).to(input_dtype).requires_grad_()
    gradients = []
    for forward in (lambda: layer(x), lambda: TWINS[name](linear(x))):
        with torch.autocast("cpu", dtype):
            output = forward()
            assert output.dtype == dtype
        with torch.autocast("cpu", dtype) if backward_inside else nullcontext():
            gradients.append([output, *torch.autograd.grad(output.float().sum(), (x, linear.weight, linear.bias))])
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_autocast_leaves_float64_and_complex_alone() -> None:
    for dtype in (torch.float64, torch.complex64):
        layer = mg.Dense(3, 2, activation="tanh", dtype=dtype)
        x = torch.randn(4, 3, dtype=dtype, requires_grad=True)
        expected = torch.autograd.grad(layer(x).abs().sum(), (x, layer.weight))
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(x)
            found = torch.autograd.grad(output.abs().sum(), (x, layer.weight))
        assert output.dtype == dtype
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_autocast_around_the_backward_pass_only_changes_nothing() -> None:
    layer, x = mg.Dense(30, 20, activation="gelu"), torch.randn(40, 30, requires_grad=True)
    leaves = (x, layer.weight, layer.bias)
    expected = torch.autograd.grad(layer(x).sum(), leaves)
    loss = layer(x).sum()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_autocast_without_gradients() -> None:
    layer, x = mg.Dense(3, 2, activation="relu"), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        with torch.no_grad():
            assert torch.equal(layer(x), expected)


def test_autocast_second_derivatives_of_float64() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert gradgradcheck(lambda x, w: mg.dense(x, w, None, "tanh"), (double(2, 3), double(2, 3)))


# The module


def test_is_a_linear_layer() -> None:
    layer = mg.Dense(3, 2, activation="relu")
    assert isinstance(layer, nn.Linear)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert repr(layer) == "Dense(in_features=3, out_features=2, bias=True, activation='relu')"
    assert repr(mg.Dense(3, 2, False)) == "Dense(in_features=3, out_features=2, bias=False)"


def test_same_initialisation_as_linear() -> None:
    torch.manual_seed(1)
    layer = mg.Dense(30, 20)
    torch.manual_seed(1)
    linear = nn.Linear(30, 20)
    assert torch.equal(layer.weight, linear.weight) and torch.equal(layer.bias, linear.bias)


def test_state_dicts_load_both_ways() -> None:
    layer, linear = mg.Dense(3, 2, activation="relu"), nn.Linear(3, 2)
    x = torch.randn(4, 3)
    layer.load_state_dict(linear.state_dict())
    assert torch.equal(layer(x), linear(x).relu())
    other = mg.Dense(3, 2, activation="relu")
    linear.load_state_dict(other.state_dict())
    assert torch.equal(other(x), linear(x).relu())


@pytest.mark.parametrize("activation", ["gelu", None], ids=str)
def test_copies(activation: str | None) -> None:
    layer, x, buffer, whole = mg.Dense(3, 2, activation=activation), torch.randn(4, 3), io.BytesIO(), io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    torch.save(layer, whole)
    loaded = mg.Dense(3, 2, activation=activation)
    loaded.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    unpickled = torch.load(io.BytesIO(whole.getvalue()), weights_only=False)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded, unpickled):
        assert type(twin) is mg.Dense
        assert twin.activation is layer.activation
        assert twin.weight is not layer.weight
        assert torch.equal(twin(x), layer(x))


def test_from_linear_shares_parameters() -> None:
    for bias in (True, False):
        linear = nn.Linear(3, 2, bias=bias).eval()
        layer = mg.Dense.from_linear(linear, "relu")
        assert layer.weight is linear.weight and layer.bias is linear.bias
        assert not layer.training
        assert (layer.in_features, layer.out_features) == (3, 2)
    frozen = mg.Dense.from_linear(nn.Linear(3, 2).requires_grad_(False))
    assert not frozen.weight.requires_grad and frozen.activation is mg.activations["identity"]


def test_meta_device_and_to_empty() -> None:
    layer = mg.Dense(3, 2, device="meta", dtype=torch.float64)
    assert layer.weight.is_meta and layer.weight.dtype == torch.float64
    output = layer(torch.ones(4, 3, dtype=torch.float64, device="meta"))
    output.sum().backward()
    assert output.shape == (4, 2) and layer.weight.grad is not None and layer.weight.grad.is_meta
    layer.zero_grad()
    assert layer.to_empty(device="cpu")(torch.ones(4, 3, dtype=torch.float64)).shape == (4, 2)


def test_parametrised_weight() -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(mg.Dense(3, 2, activation="tanh", dtype=torch.float64))
    x, leaves = double(4, 3), list(layer.parameters())
    found = torch.autograd.grad(layer(x).sum(), leaves)
    expected = torch.autograd.grad(torch.tanh(nn.functional.linear(x, layer.weight, layer.bias)).sum(), leaves)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_activation_checkpointing() -> None:
    from torch.utils.checkpoint import checkpoint

    model, x = mg.MLP([3, 5, 2], "gelu", dtype=torch.float64), double(4, 3)
    expected = torch.autograd.grad(model(x).sum(), (x, *model.parameters()))
    for reentrant in (True, False):
        x.grad = None
        model.zero_grad()
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
        found = [x.grad, *(p.grad for p in model.parameters())]
        assert all(a is not None and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW], ids=lambda o: o.__name__)
@pytest.mark.parametrize("name", ["relu", "sigmoid", "gelu"])
def test_the_training_curve_is_that_of_linear_and_activation(optimizer: type, name: str) -> None:
    theirs = nn.Sequential(nn.Linear(8, 16), TWINS[name], nn.Linear(16, 3))
    ours = nn.Sequential(mg.Dense(8, 16, activation=name), mg.Dense(16, 3))
    ours[0].load_state_dict(theirs[0].state_dict())
    ours[1].load_state_dict(theirs[2].state_dict())
    x, y = torch.randn(64, 8), torch.randint(3, (64,))
    curves = []
    for model in (ours, theirs):
        step, curve = optimizer(model.parameters(), lr=0.01), []
        for _ in range(200):
            step.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            step.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0][-1] < 0.99 * curves[0][0]
    assert max(abs(a - b) for a, b in zip(*curves, strict=True)) <= 1e-6
