"""The sentences for what gradient descent does not accept."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
from torch.nn import Parameter

import manualgrad as mg


@pytest.fixture
def p() -> Iterator[Parameter]:
    parameter = Parameter(torch.ones(2))
    yield parameter
    assert torch.equal(parameter, torch.ones(2))


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        (
            {},
            TypeError,
            "GradientDescent expected a learning rate `lr`, got none. "
            "Pass for example GradientDescent(model.parameters(), lr=0.1), or an lr in every param group.",
        ),
        ({"lr": -0.1}, ValueError, "Invalid learning rate: -0.1. Expected a finite number >= 0, for example lr=0.1."),
        (
            {"lr": float("nan")},
            ValueError,
            "Invalid learning rate: nan. Expected a finite number >= 0, for example lr=0.1.",
        ),
        (
            {"lr": float("inf")},
            ValueError,
            "Invalid learning rate: inf. Expected a finite number >= 0, for example lr=0.1.",
        ),
        (
            {"lr": torch.tensor(-1.0)},
            ValueError,
            "Invalid learning rate: -1.0. Expected a finite number >= 0, for example lr=0.1.",
        ),
        (
            {"lr": torch.tensor([0.1, 0.2])},
            ValueError,
            "Tensor lr must be 1-element, got shape (2,). Give each param group an lr of its own.",
        ),
        (
            {"lr": 0.1, "momentum": -0.5},
            ValueError,
            "Invalid momentum value: -0.5. Expected a number from 0 to 1, for example momentum=0.9.",
        ),
        (
            {"lr": 0.1, "momentum": 1.5},
            ValueError,
            "Invalid momentum value: 1.5. Expected a number from 0 to 1, for example momentum=0.9.",
        ),
        (
            {"lr": 0.1, "weight_decay": -1.0},
            ValueError,
            "Invalid weight_decay value: -1.0. Expected a finite number >= 0, for example weight_decay=1e-4.",
        ),
        *[
            (
                {"lr": 0.1, "dampening": value},
                ValueError,
                f"Invalid dampening value: {value}. Expected a finite number, for example dampening=0.1.",
            )
            for value in (float("nan"), float("inf"))
        ],
        (
            {"lr": 0.1, "nesterov": True},
            ValueError,
            "Nesterov momentum requires a momentum and zero dampening, got momentum=0 and dampening=0. "
            "Pass for example momentum=0.9, dampening=0.",
        ),
        (
            {"lr": 0.1, "nesterov": True, "momentum": 0.9, "dampening": 0.1},
            ValueError,
            "Nesterov momentum requires a momentum and zero dampening, got momentum=0.9 and dampening=0.1. "
            "Pass for example momentum=0.9, dampening=0.",
        ),
        (
            {"lr": "0.1"},
            TypeError,
            "GradientDescent expected `lr` to be a real number, got '0.1'. Pass for example lr=0.1.",
        ),
        (
            {"lr": 0.1j},
            TypeError,
            "GradientDescent expected `lr` to be a real number, got 0.1j. Pass for example lr=0.1.",
        ),
        (
            {"lr": [0.1]},
            TypeError,
            "GradientDescent expected `lr` to be a real number, got [0.1]. Pass for example lr=0.1.",
        ),
        (
            {"lr": torch.tensor(0.1j)},
            TypeError,
            "GradientDescent expected `lr` to be a real number, got tensor(0.+0.1000j). Pass for example lr=0.1.",
        ),
        (
            {"lr": 0.1, "momentum": "0.9"},
            TypeError,
            "GradientDescent expected `momentum` to be a real number, got '0.9'. Pass for example momentum=0.9.",
        ),
        (
            {"lr": 0.1, "momentum": None},
            TypeError,
            "GradientDescent expected `momentum` to be a real number, got None. Pass for example momentum=0.9.",
        ),
        (
            {"lr": 0.1, "dampening": "0"},
            TypeError,
            "GradientDescent expected `dampening` to be a real number, got '0'. Pass for example dampening=0.1.",
        ),
        (
            {"lr": 0.1, "weight_decay": None},
            TypeError,
            "GradientDescent expected `weight_decay` to be a real number, got None. Pass for example weight_decay=0.0001.",
        ),
        (
            {"lr": None},
            TypeError,
            "GradientDescent expected a learning rate `lr`, got none. "
            "Pass for example GradientDescent(model.parameters(), lr=0.1), or an lr in every param group.",
        ),
        (
            {"lr": 0.1, "maximize": "no"},
            TypeError,
            "GradientDescent expected `maximize` to be True or False, got 'no'. Pass maximize=True or False.",
        ),
        (
            {"lr": 0.1, "nesterov": "yes", "momentum": 0.9},
            TypeError,
            "GradientDescent expected `nesterov` to be True or False, got 'yes'. Pass nesterov=True or False.",
        ),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], error: type[Exception], sentence: str, p: Parameter) -> None:
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        mg.GradientDescent([p], **options)
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        mg.GradientDescent([{"params": [p], **options}])
    if "lr" not in options:
        return
    optimizer = mg.GradientDescent([Parameter(torch.ones(1))], lr=0.1)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        optimizer.add_param_group({"params": [p], **options})
    assert optimizer.state_dict() == before


@pytest.mark.parametrize("params", [[], iter([]), ()], ids=["list", "iterator", "tuple"])
def test_no_parameters(params: Any) -> None:
    sentence = "optimizer got an empty parameter list. Pass for example model.parameters()."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        mg.GradientDescent(params, lr=0.1)


@pytest.mark.parametrize(
    "params",
    [None, 3, torch.nn.Linear(1, 1), mg.MLP([2, 1]), torch.nn.ParameterDict({"w": torch.ones(1)})],
    ids=lambda params: type(params).__name__,
)
def test_not_parameters(params: Any) -> None:
    sentence = (
        f"GradientDescent expected `params` to be a sequence of parameters, got {type(params).__name__}. "
        "Pass for example model.parameters()."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        mg.GradientDescent(params, lr=0.1)


def test_a_parameter_list_is_a_module_and_a_sequence_of_parameters(p: Parameter) -> None:
    optimizer = mg.GradientDescent(torch.nn.ParameterList([p]), lr=0.1)
    assert optimizer.param_groups[0]["params"][0] is p


@pytest.mark.parametrize("lr", [0, 1, True, numpy.float32(0.5), torch.tensor([0.5])], ids=repr)
def test_every_real_number_is_a_learning_rate(lr: Any, p: Parameter) -> None:
    w = Parameter(torch.ones(2))
    w.grad = torch.ones(2)
    mg.GradientDescent([w], lr=lr).step()
    assert torch.equal(w, torch.full((2,), 1 - float(lr)))


def test_factored_is_yes_or_no(p: Parameter) -> None:
    sentence = "GradientDescent expected `factored` to be True or False, got 'no'. Pass factored=True or False."
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        mg.GradientDescent([p], lr=0.1, factored="no")  # type: ignore[arg-type]
