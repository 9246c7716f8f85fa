"""compare(): by hand, by autograd and the float64 truth."""

import copy
import gc
import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
import manualgrad.factored.choice
from manualgrad.autograd.switch import is_by_autograd
from manualgrad.comparison.result import Row
from tests.comparison.batch import X, Y, mean_square, wrong_tanh


@pytest.mark.parametrize("name", mg.activations)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_activation(name: str, dtype: torch.dtype) -> None:
    model = mg.MLP([3, 7, 2], name, "sigmoid", dtype=dtype)
    comparison = mg.compare(model, mg.QuadraticLoss(), X.to(dtype), Y.to(dtype))
    assert comparison.ok, str(comparison)
    assert [row.name for row in comparison.rows] == ["0.weight", "0.bias", "1.weight", "1.bias", "input"]
    assert [row.shape for row in comparison.rows] == [(7, 3), (7,), (2, 7), (2,), (5, 3)]
    assert comparison.loss_by_hand == comparison.loss_by_autograd
    if dtype == torch.float64:
        assert comparison.max_relative_error <= 1e-12
        assert all(row.error_by_autograd == 0 for row in comparison.rows)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex(dtype: torch.dtype) -> None:
    model = mg.MLP([3, 4, 2], "tanh", dtype=dtype)
    assert mg.compare(model, mean_square, X.to(dtype), Y.to(dtype)).ok


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_planted_wrong_derivative_is_found(dtype: torch.dtype) -> None:
    model = mg.MLP([3, 4, 2], wrong_tanh(1.5 if dtype == torch.bfloat16 else 1.01), dtype=dtype)
    comparison = mg.compare(model, nn.MSELoss(), X.to(dtype), Y.to(dtype))
    assert not comparison.ok
    assert [row.ok for row in comparison.rows] == [False, False, True, True, False]  # everything below that layer
    assert comparison.max_relative_error == pytest.approx(0.5 if dtype == torch.bfloat16 else 0.01, rel=0.05)
    assert "NOT ok: 0.weight, 0.bias, input." in str(comparison)


def test_a_planted_wrong_loss_gradient_is_found() -> None:
    class Wrong(mg.QuadraticLoss):
        def gradient(self, outputs: Tensor, targets: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return 2 * super().gradient(outputs, targets)

    comparison = mg.compare(mg.MLP([3, 2]), Wrong(), X, Y)
    assert [row.ok for row in comparison.rows] == [False] * 3
    assert comparison.max_relative_error == pytest.approx(1.0)


def test_the_tolerance_decides() -> None:
    model = mg.MLP([3, 4, 2], wrong_tanh())
    assert mg.compare(model, nn.MSELoss(), X, Y, tolerance=0.02).ok
    assert not mg.compare(model, nn.MSELoss(), X, Y, tolerance=0.005).ok


# What it leaves alone


class Everything(nn.Module):
    """Dropout, batch normalisation, Python's random numbers and a counter."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.below = mg.Dense(3, 20, activation="gelu")
        self.norm = nn.BatchNorm1d(20)
        self.dropout = nn.Dropout(0.5)
        self.above = mg.Dense(20, 2)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.above(self.dropout(self.norm(self.below(x)))) * (1 + random.random())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_gradients", [True, False])
def test_everything_is_left_as_it_was(training: bool, with_gradients: bool) -> None:
    model = Everything().train(training)
    x = X.clone().requires_grad_()
    if with_gradients:
        mean_square(model(x), Y).backward()
    state = copy.deepcopy(model.state_dict())
    versions = [tensor._version for tensor in model.state_dict().values()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    parameters = [(p, p.grad) for p in model.parameters()]
    x_gradient = x.grad
    torch_state, python_state = torch.get_rng_state(), random.getstate()

    comparison = mg.compare(model, mean_square, x, Y)

    assert comparison.ok, str(comparison)
    assert model.training == training and model.norm.training == training
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True))
    assert [tensor._version for tensor in model.state_dict().values()] == versions
    for p, gradient, (before, its_gradient) in zip(model.parameters(), gradients, parameters, strict=True):
        assert p is before and p.grad is its_gradient
        assert gradient is None or (p.grad is not None and torch.equal(p.grad, gradient))
    assert x.grad is x_gradient
    assert torch.equal(torch.get_rng_state(), torch_state) and random.getstate() == python_state
    assert not is_by_autograd()


def test_also_after_an_error() -> None:
    model = Everything()
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    with pytest.raises(ValueError, match="real 0-dimensional"):
        mg.compare(model, lambda outputs, targets: outputs, X, Y)
    assert torch.equal(torch.get_rng_state(), torch_state) and random.getstate() == python_state
    assert model.calls.item() == 0 and not is_by_autograd()


def test_all_three_see_the_same_dropout() -> None:
    comparison = mg.compare(nn.Sequential(mg.Dense(3, 200), nn.Dropout(0.5), mg.Dense(200, 2)), mean_square, X, Y)
    assert comparison.ok
    assert all(row.error_by_autograd < 1e-5 for row in comparison.rows)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_inside_other_modes(mode: Callable[[], Any]) -> None:
    model = mg.MLP([3, 4, 2], "gelu")
    with mode():
        x, y = X.clone(), Y.clone()
        inside = mg.compare(model, nn.MSELoss(), x, y)
    assert inside.ok
    assert mg.compare(model, nn.MSELoss(), x, y) == inside  # inference tensors, used outside


def test_a_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = mg.MLP([3, 4, 2], "gelu")
    assert mg.compare(model, nn.MSELoss(), X, Y).ok


def test_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        comparison = mg.compare(mg.MLP([3, 4, 2], "relu"), mg.QuadraticLoss(), X, Y, tolerance=1e-2)
    assert comparison.ok, str(comparison)
    assert max(row.error_by_autograd for row in comparison.rows) > 1e-4  # the truth is in float64 all the same


# Which rows there are


def test_frozen_parameters_have_no_row() -> None:
    model = mg.MLP([3, 4, 2])
    model[0].requires_grad_(False)
    assert [row.name for row in mg.compare(model, nn.MSELoss(), X, Y).rows] == ["1.weight", "1.bias", "input"]


def test_unused_parameters_have_the_gradient_zero() -> None:
    model = mg.MLP([3, 2])
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    row = next(row for row in mg.compare(model, nn.MSELoss(), X, Y).rows if row.name == "unused")
    assert row == Row("unused", (3,), 0.0, 0.0, 0.0, 0.0, True)


def test_tied_weights_have_one_row() -> None:
    model = nn.Sequential(mg.Dense(3, 3, activation="tanh"), mg.Dense(3, 3))
    model[1].weight = model[0].weight
    comparison = mg.compare(model, nn.MSELoss(), X, X)
    assert [row.name for row in comparison.rows] == ["0.weight", "0.bias", "1.bias", "input"]
    assert comparison.ok


def wide() -> tuple[mg.MLP, Tensor, Tensor]:
    return mg.MLP([192, 192, 200, 3], "tanh"), torch.randn(5, 192), torch.randn(5, 3)


def test_where_training_will_use_factors_they_are_compared() -> None:
    model, x, y = wide()
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    comparison = mg.compare(model, mg.QuadraticLoss(), x, y)
    assert comparison.ok
    assert [row.name for row in comparison.rows if row.factored] == ["0.weight", "1.weight"]  # the last one is small
    assert " ".join(str(comparison).split()).endswith("Factored by hand: 0.weight, 1.weight.")
    mg.QuadraticLoss()(model(x), y).backward()
    for row, p in zip(comparison.rows, model.parameters(), strict=False):
        assert row.factored == isinstance(p.grad, mg.FactoredGradient)
    del optimizer, p
    model.zero_grad()
    gc.collect()
    assert not any(row.factored for row in mg.compare(model, mg.QuadraticLoss(), x, y).rows)


def test_wrong_factors_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the optimizer gets, and not a product that is computed for the comparison alone."""
    model, x, y = wide()
    keep = mg.GradientDescent(model.parameters(), lr=0.1)
    made = manualgrad.factored.choice.FactoredGradient

    def too_large(delta: Tensor, a: Tensor, *arguments: Any, **keywords: Any) -> mg.FactoredGradient:
        return made(1.01 * delta, a, *arguments, **keywords)

    monkeypatch.setattr(manualgrad.factored.choice, "FactoredGradient", too_large)
    comparison = mg.compare(model, mg.QuadraticLoss(), x, y)
    assert [row.name for row in comparison.rows if not row.ok] == ["0.weight", "1.weight"]
    del keep


@pytest.mark.filterwarnings("error")
def test_factored_gradients_of_tied_weights_and_large_batches() -> None:
    layer = mg.Dense(192, 192, activation="tanh")
    model = nn.Sequential(layer, layer)
    mg.keep_factored(model)
    few = mg.compare(model, nn.MSELoss(), torch.randn(5, 192), torch.randn(5, 192))
    many = mg.compare(model, nn.MSELoss(), torch.randn(70, 192), torch.randn(70, 192))  # 140 rows: past 96 a dense one
    assert few.ok and [row.factored for row in few.rows] == [True, False, False]
    assert many.ok and [row.factored for row in many.rows] == [False, False, False]


def test_a_comparison_leaves_the_requests_for_factors_alone() -> None:
    model, x, y = wide()
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    mg.QuadraticLoss()(model(x), y).backward()
    before = [p.grad for p in model.parameters()]
    mg.compare(model, mg.QuadraticLoss(), x, y)
    assert all(p.grad is g for p, g in zip(model.parameters(), before, strict=True))
    assert isinstance(before[0], mg.FactoredGradient) and not before[0].is_dense
    optimizer.step()


def test_a_parameter_named_input_keeps_its_row() -> None:
    model = mg.MLP([3, 2])
    model.register_parameter("input", nn.Parameter(torch.ones(4)))
    comparison = mg.compare(model, nn.MSELoss(), X, Y)
    assert sorted(row.shape for row in comparison.rows if row.name == "input") == [(4,), (5, 3)]


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = mg.Dense(3, 2, activation="tanh")

    def forward(self, x: Tensor, index: Tensor, options: dict[str, Tensor]) -> Tensor:
        return self.layer(x[index] + options["offset"])


class Pair(NamedTuple):
    first: Tensor
    second: list[Tensor]


def test_several_inputs_and_nested_targets() -> None:
    arguments = (X, torch.tensor([4, 3, 2, 1, 0]), {"offset": torch.ones(3)})
    comparison = mg.compare(TwoInputs(), lambda a, y: mean_square(a, y.first + y.second[0]), arguments, Pair(Y, [Y]))
    assert [row.name for row in comparison.rows] == ["layer.weight", "layer.bias", "input[0]"]
    assert comparison.ok and all(row.error_by_autograd < 1e-5 for row in comparison.rows)


def test_integer_inputs_have_no_row() -> None:
    model = nn.Sequential(nn.Embedding(4, 3), mg.Dense(3, 2))
    comparison = mg.compare(model, mg.SoftmaxCrossEntropyLoss(), torch.tensor([0, 3, 1]), torch.tensor([0, 1, 1]))
    assert [row.name for row in comparison.rows] == ["0.weight", "1.weight", "1.bias"]
    assert comparison.ok


def test_a_loss_module_with_float32_buffers() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.3, 0.7]))
    comparison = mg.compare(mg.MLP([3, 2]), loss, X, torch.tensor([0, 1, 1, 0, 1]))
    assert comparison.ok and loss.weight is not None and loss.weight.dtype == torch.float32


class Doubled(torch.autograd.Function):
    """By somebody's hand, but not by this package's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Doubling(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return Doubled.apply(super().forward(input))


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), Doubling(3, 2)], ids=lambda layer: type(layer).__name__)
def test_autograd_compared_with_itself_says_so(layer: nn.Module) -> None:
    model = nn.Sequential(layer)
    comparison = mg.compare(model, nn.MSELoss(), X, Y)
    assert not comparison.ok and not json.loads(comparison.to_json())["anything_by_hand"]
    assert all(row.ok for row in comparison.rows) and "\nNOT ok: nothing is by hand." in str(comparison)
    assert " ".join(str(comparison).split()).endswith(
        "Nothing here is by hand: no Dense was called and the loss is not manualgrad's, "
        "so autograd was compared with itself. Call mg.convert(model) first."
    )


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch.compile itself
@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (mg.MLP([3, 2]), nn.MSELoss()),
        (nn.Linear(3, 2), mg.QuadraticLoss()),
        (mg.convert(nn.Sequential(nn.Linear(3, 2))), nn.MSELoss()),
        (torch.compile(mg.MLP([3, 2]), backend="eager"), nn.MSELoss()),
    ],
    ids=["layer", "loss", "converted", "compiled"],
)
def test_one_thing_by_hand_is_enough(model: Any, loss: nn.Module) -> None:
    for _ in range(2):  # the second time from compiled code that is there already
        comparison = mg.compare(model, loss, X, Y)
        assert comparison.anything_by_hand and "Nothing here is by hand" not in str(comparison)
        mg.compare(nn.Linear(3, 2), nn.MSELoss(), X, Y)
