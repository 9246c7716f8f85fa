"""trace(): every number of a training step, and the step of any optimizer."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from tests.tracing.traced import Tower, X, Y, assert_is_the_next_step, step
from tests.xor import INPUTS, TARGETS, hand_numbers, xor_net, xor_trace


def test_every_number_of_xor_is_the_hand_s() -> None:
    model = xor_net()
    trace = xor_trace(model)
    *by_hand, whole = hand_numbers(model)
    assert len(trace.layers) == len(by_hand) == 2
    for layer, expected in zip(trace.layers, by_hand, strict=True):
        for name, numbers in expected.items():
            torch.testing.assert_close(
                getattr(layer, name), torch.tensor(numbers, dtype=torch.float64), rtol=1e-13, atol=1e-17, msg=name
            )
    for name, numbers in whole.items():
        torch.testing.assert_close(getattr(trace, name), torch.tensor(numbers, dtype=torch.float64), rtol=1e-14, atol=0)
    assert torch.equal(trace.inputs, INPUTS) and torch.equal(trace.targets, TARGETS)
    assert [(layer.name, layer.call, layer.activation, layer.trained) for layer in trace.layers] == [
        ("0", 0, "sigmoid", True),
        ("1", 0, "sigmoid", True),
    ]
    assert (trace.loss_name, trace.optimizer, trace.lr) == ("QuadraticLoss", "GradientDescent(lr=0.5)", 0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lr", [0.5, 0.1, 3.0])
def test_the_update_is_gradient_descent_to_the_last_bit(dtype: torch.dtype, lr: float) -> None:
    """w_after = w_before - eta delta a^T, by the optimizer's own rounding: one multiply-add."""
    model = mg.MLP([3, 5, 2], "tanh", dtype=dtype)
    optimizer = mg.GradientDescent(model.parameters(), lr=lr)
    trace = assert_is_the_next_step(model, mg.QuadraticLoss(), X.to(dtype), Y.to(dtype), optimizer)
    for layer in trace.layers:
        assert torch.equal(layer.grad_weight, layer.delta.T @ layer.inputs)
        assert torch.equal(layer.weight_after, layer.weight_before.sub(layer.delta.T @ layer.inputs, alpha=lr))
        assert layer.bias_before is not None and layer.bias_after is not None and layer.grad_bias is not None
        assert torch.equal(layer.bias_after, layer.bias_before.sub(layer.delta.sum(0), alpha=lr))
        assert layer.delta.dtype == layer.z.dtype == layer.weight_after.dtype == dtype


def test_by_default_plain_gradient_descent_with_lr_a_tenth() -> None:
    model = mg.MLP([3, 5, 2])
    trace = assert_is_the_next_step(model, mg.QuadraticLoss(), X, Y)
    assert (trace.optimizer, trace.lr) == ("GradientDescent(lr=0.1)", 0.1)


@pytest.mark.parametrize(
    ("make", "described", "lr"),
    [
        (lambda p: mg.GradientDescent(p, lr=0.1, momentum=0.9), "GradientDescent(lr=0.1, momentum=0.9)", 0.1),
        (
            lambda p: torch.optim.SGD(p, lr=1, momentum=0.9, nesterov=True),
            "SGD(lr=1, momentum=0.9, nesterov=True)",
            1.0,
        ),
        (lambda p: torch.optim.SGD(p, lr=0.1, foreach=True), "SGD(lr=0.1, foreach=True)", 0.1),
        (lambda p: torch.optim.Adam(p), "Adam(lr=0.001)", 0.001),
        (
            lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), weight_decay=0.1),
            "AdamW(lr=0.01, weight_decay=0.1)",
            0.01,
        ),
        (lambda p: torch.optim.RMSprop(p, momentum=0.5), "RMSprop(lr=0.01, momentum=0.5)", 0.01),
        (lambda p: torch.optim.Adagrad(p), "Adagrad(lr=0.01)", 0.01),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_step_of_any_optimizer_with_its_state(make: Callable[[Any], Any], described: str, lr: float) -> None:
    model, loss = mg.MLP([3, 5, 2], "tanh"), mg.QuadraticLoss()
    optimizer = make(model.parameters())
    for _ in range(3):  # momenta are no longer those of a first step
        step(model, loss, X, Y, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    trace = mg.trace(model, loss, X, Y, optimizer)
    torch.testing.assert_close(optimizer.state_dict(), state, rtol=0, atol=0)
    assert (trace.optimizer, trace.lr) == (described, pytest.approx(lr))
    assert_is_the_next_step(model, loss, X, Y, optimizer)


def test_param_groups_of_their_own() -> None:
    model = mg.MLP([3, 5, 4, 2], "tanh")
    layers: list[Any] = list(model)
    groups = [{"params": layers[0].parameters(), "lr": 0.5}, {"params": layers[2].parameters(), "momentum": 0.9}]
    trace = assert_is_the_next_step(model, mg.QuadraticLoss(), X, Y, mg.GradientDescent(groups, lr=0.1))
    assert (trace.optimizer, trace.lr) == ("GradientDescent(lr=0.1 or 0.5, momentum=0 or 0.9)", None)
    assert [layer.trained for layer in trace.layers] == [True, False, True]
    assert torch.equal(trace.layers[1].weight_before, trace.layers[1].weight_after)
    assert trace.layers[1].grad_weight.abs().max() > 0


@pytest.mark.parametrize("by", ["GradientDescent", "keep_factored"])
def test_a_wide_weight_is_updated_from_its_factors_as_in_training(by: str) -> None:
    model = mg.MLP([256, 256, 2], "relu")
    inputs, targets = torch.randn(4, 256), torch.randn(4, 2)
    if by == "GradientDescent":
        optimizer: Any = mg.GradientDescent(model.parameters(), lr=0.1)
    else:
        optimizer = torch.optim.SGD(mg.keep_factored(model).parameters(), lr=0.1)
    layer = assert_is_the_next_step(model, mg.QuadraticLoss(), inputs, targets, optimizer).layers[0]
    assert torch.equal(layer.grad_weight, layer.delta.T @ layer.inputs)
    from_factors = layer.weight_before.addmm(layer.delta.T, layer.inputs, alpha=-0.1)
    assert torch.equal(layer.weight_after, from_factors)
    assert not torch.equal(
        layer.weight_after, layer.weight_before.sub(layer.grad_weight, alpha=0.1)
    )  # rounds otherwise


def test_by_default_a_wide_weight_is_updated_by_the_gradient_that_is_shown() -> None:
    model = mg.MLP([256, 256, 2], "relu")
    mine = mg.GradientDescent(model.parameters(), lr=0.1)  # wants factors, but is not asked
    layer = mg.trace(model, mg.QuadraticLoss(), torch.randn(4, 256), torch.randn(4, 2)).layers[0]
    assert torch.equal(layer.weight_after, layer.weight_before.sub(layer.grad_weight, alpha=0.1))
    assert mine.factored


def test_nan_goes_through() -> None:
    inputs = X.clone()
    inputs[0, 0] = float("nan")
    trace = assert_finds_nan(inputs)
    written = json.loads(trace.to_json())
    assert written["loss"] is None and written["layers"][0]["z"][0][0] is None
    assert written["layers"][0]["z"][1][0] == pytest.approx(trace.layers[0].z[1, 0].item())


def assert_finds_nan(inputs: Tensor) -> mg.Trace:
    trace = mg.trace(mg.MLP([3, 4, 2], "tanh"), nn.MSELoss(), inputs, Y)
    assert trace.loss.isnan() and trace.layers[0].z[0].isnan().all() and trace.layers[0].z[1:].isfinite().all()
    assert trace.layers[0].weight_after.isnan().any()
    return trace


def test_as_plain_values() -> None:
    trace = xor_trace(xor_net())
    values = trace.to_dict()
    assert json.loads(trace.to_json()) == values
    assert set(values) == {field for field in vars(trace)}
    assert torch.equal(torch.tensor(values["layers"][1]["delta"], dtype=torch.float64), trace.layers[1].delta)
    assert values["loss"] == trace.loss.item() and values["lr"] == 0.5
    assert all(set(layer) == set(vars(trace.layers[0])) for layer in values["layers"])


def test_one_line_says_what_it_is() -> None:
    trace = xor_trace(xor_net())
    assert repr(trace) == (f"Trace(2 layers, 4 examples, QuadraticLoss C = {trace.loss:.4g}, GradientDescent(lr=0.5))")
    assert repr(trace.layers[0]) == "TracedLayer('0': 2 -> 3, sigmoid, 4 examples)"
    again = mg.trace(Tower(), mg.QuadraticLoss(), X, Y).layers[2]
    assert repr(again) == "TracedLayer('again', call 2: 6 -> 6, tanh, 8 examples)"


def test_no_two_fields_share_memory() -> None:
    trace = mg.trace(nn.Sequential(mg.Dense(3, 2)), mg.QuadraticLoss(), X, Y)
    fields = [*vars(trace).values(), *vars(trace.layers[0]).values()]
    places = [x.untyped_storage().data_ptr() for x in fields if isinstance(x, Tensor)]
    assert len(set(places)) == len(places)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    model = Tower().cuda()
    trace = assert_is_the_next_step(model, mg.QuadraticLoss(), X.cuda(), Y.cuda())
    assert trace.layers[0].z.is_cuda and trace.outputs.is_cuda
    assert json.loads(trace.to_json()) == trace.to_dict() and "4. UPDATE" in str(trace)
