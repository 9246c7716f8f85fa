"""What compare says of wrong arguments."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import manualgrad as mg
import manualgrad.factored.requests
from manualgrad.losses.loss import LossFunction
from tests.comparison.batch import X, Y, mean_square


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
        (LossFunction, "the class LossFunction. Pass LossFunction.apply."),
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
