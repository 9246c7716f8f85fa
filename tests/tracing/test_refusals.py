"""What trace() refuses, in full sentences."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.autograd.switch import by_autograd
from tests.tracing.traced import X, Y


class Doubled(mg.Dense):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Idle(nn.Module):
    def __init__(self, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = mg.Dense(3, 2) if layer is None else layer

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.layer.weight.T  # type: ignore[operator]


def returning(function: Callable[[Tensor], Any]) -> nn.Module:
    class Returning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = mg.Dense(3, 2)

        def forward(self, x: Tensor) -> Any:
            return function(self.layer(x))

    return Returning()


DENSE, MSE = mg.Dense(3, 2), nn.MSELoss()
SEVEN = nn.Sequential(*(nn.Linear(3, 3) for _ in range(7)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (torch.sin, MSE, X, Y),
            TypeError,
            "trace expected `model` to be a torch.nn.Module, got builtin_function_or_method. Pass the model itself.",
        ),
        (
            (X, MSE, DENSE, Y),
            TypeError,
            "trace expected `model` to be a torch.nn.Module, got Tensor. "
            "The order is trace(model, loss, inputs, targets).",
        ),
        (
            (DENSE, MSE, torch.sin, Y),
            TypeError,
            "trace expected `inputs` to be a torch.Tensor, got builtin_function_or_method. "
            "The order is trace(model, loss, inputs, targets).",
        ),
        (
            (MSE, DENSE, X, Y),
            ValueError,
            "trace expected a model with Dense layers, got MSELoss with none. "
            "The order is trace(model, loss, inputs, targets).",
        ),
        (
            (DENSE, MSE, X.tolist(), Y),
            TypeError,
            "trace expected `inputs` to be a torch.Tensor, got list. "
            "Convert it with torch.as_tensor(inputs), or wrap the model in a module of one tensor.",
        ),
        (
            (DENSE, MSE, X, (Y, Y)),
            TypeError,
            "trace expected `targets` to be a torch.Tensor, got tuple. "
            "Convert it with torch.as_tensor(targets), or let the loss find the rest.",
        ),
        (
            (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), MSE, X, Y),
            ValueError,
            "trace expected a model with Dense layers, got Sequential with none. "
            "Call mg.convert(model) first. Its linear layers: '0', '2'.",
        ),
        (
            (SEVEN, MSE, X, Y),
            ValueError,
            "trace expected a model with Dense layers, got Sequential with none. "
            "Call mg.convert(model) first. Its linear layers: '0', '1', '2', '3', '4' and 2 more.",
        ),
        (
            (nn.Linear(3, 2), MSE, X, Y),
            ValueError,
            "trace expected a model with Dense layers, got Linear with none. "
            "Call mg.convert(model) first. Its linear layers: the model itself.",
        ),
        (
            (nn.Conv2d(1, 1, 1), MSE, X, Y),
            ValueError,
            "trace expected a model with Dense layers, got Conv2d with none. It has no linear layers either.",
        ),
        (
            (Idle(), MSE, X, Y),
            ValueError,
            "trace expected the model to call one of its Dense layers, got a forward pass that called none of 'layer'. "
            "Call the layers, not F.linear with their weights.",
        ),
        (
            (Idle(Doubled(3, 2)), MSE, X, Y),
            ValueError,
            "trace expected layer 'layer' to compute what a Dense computes, got Doubled with a forward of its own. "
            "Keep the Dense as it is, inside a module that does the rest.",
        ),
        (
            (returning(lambda a: (a, a)), MSE, X, Y),
            TypeError,
            "trace expected the model to return a tensor, got tuple. "
            "Wrap it in a module that returns the tensor which the loss takes.",
        ),
        (
            (returning(Tensor.detach), MSE, X, Y),
            ValueError,
            "trace expected a loss that depends on a parameter of the model, got one that depends on none. "
            "Do not detach the outputs.",
        ),
        (
            (DENSE, nn.MSELoss(reduction="none"), X, Y),
            ValueError,
            "trace expected the loss to be a real 0-dimensional tensor, got torch.float32 of shape (8, 2). "
            "Average it, for example with .mean().",
        ),
        (
            (DENSE, lambda a, y: 0.5, X, Y),
            ValueError,
            "trace expected the loss to be a real 0-dimensional tensor, got float. Average it, for example with .mean().",
        ),
        (
            (DENSE, MSE, X, Y, torch.optim.LBFGS(DENSE.parameters())),
            ValueError,
            "trace expected an optimizer that makes its step from one gradient, got LBFGS, which computes the loss anew "
            "as often as it likes. Pass for example mg.GradientDescent(model.parameters(), lr=0.1).",
        ),
        (
            (DENSE, MSE, X, Y, torch.optim.SGD(mg.Dense(3, 2).parameters(), lr=0.1)),
            ValueError,
            "trace expected an optimizer of the model's parameters, got SGD with none of them. "
            "Make it from this model: SGD(model.parameters(), ...).",
        ),
        (
            (DENSE, MSE, X, Y, 0.1),
            TypeError,
            "trace expected `optimizer` to be a torch.optim.Optimizer, got float. "
            "Pass for example mg.GradientDescent(model.parameters(), lr=0.1).",
        ),
    ],
    ids=lambda value: re.sub(r"\W+", "-", value[:90]) if isinstance(value, str) else "",
)
def test_what_cannot_be_traced_is_said_in_full(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        mg.trace(*arguments)


def test_inside_by_autograd_there_is_nothing_to_listen_to() -> None:
    message = (
        "trace expected layer '' to be differentiated by its own backward pass, got AddmmBackward0. "
        "Call trace outside of by_autograd(), and the layer outside of torch.func and torch.jit."
    )
    with by_autograd(), pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        mg.trace(mg.Dense(3, 2), nn.MSELoss(), X, Y)
