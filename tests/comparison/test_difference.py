"""The verdict on one gradient: NaN, infinity, and numbers that exceed their dtype."""

import json

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from tests.comparison.batch import X, Y, wrong_tanh


def test_where_all_is_nan_nothing_is_shown() -> None:
    x = X.clone()
    x[0, 0] = float("nan")
    comparison = mg.compare(mg.MLP([3, 2], "tanh"), nn.MSELoss(), x, Y)
    assert not comparison.ok
    assert [row.ok for row in comparison.rows] == [False, False, True]  # of the input, the other rows are compared
    lines, text = str(comparison).splitlines(), " ".join(str(comparison).split())
    weight, bias = (next(line.split() for line in lines if line.startswith(name)) for name in ("0.weight", "0.bias"))
    assert weight == ["0.weight", "2x3", *["nan"] * 4, "NO"] and bias[2:] == ["nan"] * 4 + ["NO"]
    assert "NOT ok: 0.weight, 0.bias. Largest relative difference " in text and "difference nan" not in text
    assert (
        "Not finite in all three ways: 0.weight, 0.bias. Nothing is shown there: "
        "look for NaN or infinity in inputs, targets and parameters." in text
    )
    assert text.endswith(
        "Not finite by hand and by autograd in part: input (3 of 15 entries). Only the other entries are compared there."
    )
    assert json.loads(comparison.to_json())["rows"][0]["relative_error"] is None


def test_where_every_row_is_nan_there_is_no_largest_difference() -> None:
    pytest.importorskip("matplotlib")
    comparison = mg.compare(mg.MLP([3, 2], "tanh"), nn.MSELoss(), X, torch.full_like(Y, float("nan")))
    assert not comparison.ok and comparison.max_relative_error != comparison.max_relative_error
    assert "NOT ok: 0.weight, 0.bias, input. Largest relative difference nan." in str(comparison)
    comparison.plot().canvas.draw()


def test_an_infinite_entry_leaves_the_others_to_be_compared() -> None:
    x = X.clone()
    x[0, 0] = float("inf")
    comparison = mg.compare(mg.MLP([3, 4, 2], "tanh"), nn.MSELoss(), x, Y)
    assert comparison.ok
    assert " ".join(str(comparison).split()).endswith(
        "Not finite by hand and by autograd in part: 0.weight (4 of 12 entries). Only the other entries are compared there."
    )
    assert not mg.compare(mg.MLP([3, 4, 2], wrong_tanh()), nn.MSELoss(), x, Y).ok


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
    assert " ".join(str(comparison).split()).endswith(
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
