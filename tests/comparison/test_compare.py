"""compare(): by hand, by autograd and the float64 truth."""

import copy
import gc
import html
import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
import manualgrad.factored.requests
from manualgrad.autograd.switch import is_by_autograd
from manualgrad.comparison.compare import Comparison, compare
from manualgrad.comparison.result import Row
from manualgrad.extras import MissingExtraError


X, Y = torch.linspace(-1, 1, 15).view(5, 3), torch.linspace(0, 1, 10).view(5, 2)


@pytest.fixture
def wrong() -> mg.Activation:
    """tanh with a derivative that is 1 % too large."""
    return mg.Activation("wrong", value=torch.tanh, derivative=lambda z: 1.01 * (1 - torch.tanh(z) ** 2))


def mean_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().square().mean()


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
def test_a_planted_wrong_derivative_is_found(wrong: mg.Activation, dtype: torch.dtype) -> None:
    exaggerated = mg.Activation("very wrong", wrong.value, lambda z: 1.5 * (1 - torch.tanh(z) ** 2))
    model = mg.MLP([3, 4, 2], exaggerated if dtype == torch.bfloat16 else wrong, dtype=dtype)
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


def test_the_tolerance_decides(wrong: mg.Activation) -> None:
    model = mg.MLP([3, 4, 2], wrong)
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
    assert str(comparison).endswith("Factored by hand: 0.weight, 1.weight.")
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
    made = manualgrad.factored.requests.FactoredGradient

    def too_large(delta: Tensor, a: Tensor, *arguments: Any, **keywords: Any) -> mg.FactoredGradient:
        return made(1.01 * delta, a, *arguments, **keywords)

    monkeypatch.setattr(manualgrad.factored.requests, "FactoredGradient", too_large)
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


def test_where_all_is_nan_nothing_is_shown() -> None:
    x = X.clone()
    x[0, 0] = float("nan")
    comparison = mg.compare(mg.MLP([3, 2], "tanh"), nn.MSELoss(), x, Y)
    assert not comparison.ok
    assert [row.ok for row in comparison.rows] == [False, False, True]  # of the input, the other rows are compared
    *_, weight, bias, _, verdict, nothing, in_part = str(comparison).splitlines()
    assert weight.split() == ["0.weight", "2x3", *["nan"] * 4, "NO"] and bias.split()[2:] == ["nan"] * 4 + ["NO"]
    assert verdict.startswith("NOT ok: 0.weight, 0.bias. Largest relative difference ") and "nan" not in verdict
    assert nothing == (
        "Not finite in all three ways: 0.weight, 0.bias. Nothing is shown there: "
        "look for NaN or infinity in inputs, targets and parameters."
    )
    assert in_part == (
        "Not finite by hand and by autograd in part: input (3 of 15 entries). Only the other entries are compared there."
    )
    assert json.loads(comparison.to_json())["rows"][0]["relative_error"] is None


def test_where_every_row_is_nan_there_is_no_largest_difference() -> None:
    pytest.importorskip("matplotlib")
    comparison = mg.compare(mg.MLP([3, 2], "tanh"), nn.MSELoss(), X, torch.full_like(Y, float("nan")))
    assert not comparison.ok and comparison.max_relative_error != comparison.max_relative_error
    assert "NOT ok: 0.weight, 0.bias, input. Largest relative difference nan." in str(comparison)
    comparison.plot().canvas.draw()


def test_an_infinite_entry_leaves_the_others_to_be_compared(wrong: mg.Activation) -> None:
    x = X.clone()
    x[0, 0] = float("inf")
    comparison = mg.compare(mg.MLP([3, 4, 2], "tanh"), nn.MSELoss(), x, Y)
    assert comparison.ok
    assert str(comparison).splitlines()[-1] == (
        "Not finite by hand and by autograd in part: 0.weight (4 of 12 entries). Only the other entries are compared there."
    )
    assert not mg.compare(mg.MLP([3, 4, 2], wrong), nn.MSELoss(), x, Y).ok


def test_infinity_by_hand_and_nan_by_autograd_is_a_difference_and_no_lack_of_one() -> None:
    class Infinite(mg.QuadraticLoss):
        def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return torch.full_like(outputs, float("inf"))

    comparison = mg.compare(mg.MLP([1, 2]), Infinite(), torch.ones(5, 1), torch.full_like(Y, float("nan")))
    assert [row.max_absolute_error for row in comparison.rows[:2]] == [float("inf")] * 2 and not comparison.ok
    assert not comparison.rows[0].shows_nothing


def test_where_all_exceeds_its_dtype_nothing_is_shown_either() -> None:
    model = nn.Sequential(mg.Dense(3, 2, bias=False, dtype=torch.float16))
    x, y = torch.full((5, 3), 6e4, dtype=torch.float16), Y.half()
    comparison = mg.compare(model, lambda a, y: (a.float() * 6e4).sum(), x, y)
    assert [row.ok for row in comparison.rows] == [False, True]
    assert comparison.rows[0].error_by_hand == comparison.rows[0].error_by_autograd == float("inf")
    assert str(comparison).splitlines()[-1] == (
        "Finite in float64 alone: 0.weight. Nothing is shown there: "
        "the numbers exceed their dtype. Scale the loss down, or compare in a wider dtype."
    )


def test_an_empty_parameter_hides_nothing() -> None:
    model = mg.MLP([3, 2])
    model.register_parameter("empty", nn.Parameter(torch.ones(0, 3)))
    comparison = mg.compare(model, nn.MSELoss(), X, Y)
    assert comparison.ok and "Not finite" not in str(comparison)


def test_nan_on_one_side_only_is_not_ok() -> None:
    nan = mg.Activation("nan", torch.tanh, lambda z: torch.full_like(z, float("nan")))
    comparison = mg.compare(mg.MLP([3, 4, 2], nan), nn.MSELoss(), X, Y)
    assert not comparison.ok and comparison.max_relative_error == float("inf")
    loaded = json.loads(comparison.to_json())
    assert loaded["max_relative_error"] is None and loaded["rows"][0]["relative_error"] is None


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
    assert comparison.ok and not json.loads(comparison.to_json())["anything_by_hand"]
    assert str(comparison).splitlines()[-1] == (
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


# How it is shown


@pytest.fixture
def comparison(wrong: mg.Activation) -> Iterator[Comparison]:
    model = nn.Sequential()
    model.add_module("<b>&", mg.Dense(3, 2, activation=wrong))
    yield mg.compare(model, nn.MSELoss(), X, Y)


def test_names() -> None:
    assert mg.compare is compare and mg.Comparison is Comparison


def test_table() -> None:
    rows = (Row("0.weight", (7, 3), 1e-7, 2e-6, 3e-8, 4e-8, True), Row("scale", (), 0.5, 1.0, 1.0, 0.0, False))
    expected = [
        "gradient  shape   max |by hand - autograd|  relative  by hand vs float64  autograd vs float64   ok",
        "-" * 98,
        "0.weight  7x3                      1.0e-07   2.0e-06             3.0e-08              4.0e-08  yes",
        "scale     scalar                   5.0e-01   1.0e+00             1.0e+00              0.0e+00   NO",
        "NOT ok: scale. Largest relative difference 1.0e+00.",
    ]
    assert str(Comparison(rows, 0.1, 0.1)).splitlines() == expected
    assert str(Comparison(rows[:1], 0.1, 0.1)).splitlines()[-1] == (
        "All 1 rows ok. Largest relative difference 2.0e-06."
    )


def test_json(comparison: Comparison) -> None:
    loaded = json.loads(comparison.to_json())
    assert loaded["ok"] is False
    assert loaded["loss_by_hand"] == comparison.loss_by_hand
    assert loaded["max_relative_error"] == comparison.max_relative_error
    assert [row["name"] for row in loaded["rows"]] == ["<b>&.weight", "<b>&.bias", "input"]
    assert loaded["rows"][0]["shape"] == [2, 3]
    assert loaded["rows"][0]["max_absolute_error"] == comparison.rows[0].max_absolute_error


def test_html_is_escaped(comparison: Comparison) -> None:
    page = comparison._repr_html_()
    assert "<b>" not in page and "&lt;b&gt;&amp;.weight" in page
    cells = [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", page)]
    assert cells[::7] == ["<b>&.weight", "<b>&.bias", "input"]
    assert cells[6] == "NO"


def test_plot(comparison: Comparison) -> None:
    pytest.importorskip("matplotlib")
    figure = comparison.plot()
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["<b>&.weight", "<b>&.bias", "input"]
    errors = [row.error_by_hand for row in comparison.rows] + [row.error_by_autograd for row in comparison.rows]
    assert [patch.get_width() for patch in axes.patches] == errors
    figure.canvas.draw()


def test_plot_without_matplotlib(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    sentence = (
        "Comparison.plot() expected the package `matplotlib`, which is not installed. "
        'Install it with: python -m pip install "manualgrad[demo]", '
        'or in a clone: python -m pip install -c constraints.txt -e ".[demo]"'
    )
    with pytest.raises(MissingExtraError, match=f"^{re.escape(sentence)}$"):
        comparison.plot()


def test_plot_of_infinite_errors() -> None:
    pytest.importorskip("matplotlib")
    inf = float("inf")
    figure = Comparison((Row("w", (1,), inf, inf, inf, 0.0, False),), 0.1, 0.1).plot()
    assert [patch.get_width() for patch in figure.axes[0].patches] == [1e3, 0.0]
    figure.canvas.draw()


# Errors


@pytest.mark.parametrize(
    ("loss", "came"),
    [
        (lambda a, y: a, "torch.float32 of shape (5, 2)"),
        (lambda a, y: a.sum().view(1), "torch.float32 of shape (1,)"),
        (lambda a, y: a.sum().cfloat(), "torch.complex64 of shape ()"),
        (lambda a, y: 0.5, "float"),
    ],
    ids=["rows", "one element", "complex", "number"],
)
def test_a_loss_that_is_not_one_number(loss: Callable[[Any, Any], Any], came: str) -> None:
    sentence = f"compare expected the loss to be a real 0-dimensional tensor, got {came}. Average it, for example with .mean()."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        mg.compare(mg.MLP([3, 2]), loss, X, Y)


@pytest.mark.parametrize("detached", [True, False])
def test_nothing_to_differentiate(detached: bool) -> None:
    sentence = (
        "compare expected a loss that depends on a parameter with requires_grad or on a floating point input, "
        "got one that depends on neither. Unfreeze a parameter, and do not detach the outputs."
    )
    model = mg.MLP([3, 2]) if detached else nn.Embedding(4, 2).requires_grad_(False)
    inputs = X if detached else torch.tensor([0, 3, 1, 2, 0])
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        mg.compare(model, lambda a, y: mean_square(a.detach(), y), inputs, Y)


def test_not_a_module() -> None:
    sentence = (
        "compare expected `model` to be a torch.nn.Module, got builtin_function_or_method. Pass the model itself."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        mg.compare(torch.tanh, nn.MSELoss(), X, Y)  # type: ignore[arg-type]


@pytest.mark.parametrize("caller", [mg.compare, mg.trace])
@pytest.mark.parametrize(
    ("loss", "rest"),
    [
        (None, "None. Pass for example mg.QuadraticLoss()."),
        ("mse", "'mse'. Pass for example mg.QuadraticLoss()."),
        (nn.MSELoss, "the class MSELoss. Make an instance: MSELoss()."),
        (Doubled, "the class Doubled. Pass Doubled.apply."),
    ],
    ids=["None", "text", "class", "Function"],
)
def test_not_a_loss(caller: Callable[..., Any], loss: Any, rest: str) -> None:
    sentence = f"{caller.__name__} expected `loss` to be a function of outputs and targets, got {rest}"
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        caller(mg.MLP([3, 2]), loss, X, Y)


@pytest.mark.parametrize("caller", [mg.compare, mg.trace])
def test_the_loss_comes_second(caller: Callable[..., Any]) -> None:
    sentence = (
        f"{caller.__name__} expected `loss` to be a function of outputs and targets, got a tensor of shape (5, 3). "
        f"The order is {caller.__name__}(model, loss, inputs, targets)."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        caller(mg.MLP([3, 2]), X, Y, nn.MSELoss())


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), "1e-3"])
def test_not_a_tolerance(tolerance: Any) -> None:
    sentence = (
        f"compare expected `tolerance` to be a number >= 0 or None, got {tolerance!r}. Pass for example tolerance=1e-5."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        mg.compare(mg.MLP([3, 2]), nn.MSELoss(), X, Y, tolerance=tolerance)
