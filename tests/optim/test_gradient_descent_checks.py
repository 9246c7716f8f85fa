"""The sentences for what gradient descent does not accept."""

import copy
import re
from collections.abc import Iterator
from fractions import Fraction
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


def optimizers(make: Any) -> tuple[Any, torch.nn.Parameter]:
    w = torch.nn.Parameter(torch.ones(2))
    return make([w]), w


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (torch.optim.Adam, "without momentum, dampening, with betas, eps, exp_avg, exp_avg_sq, step"),
        (torch.optim.AdamW, "without momentum, dampening, with betas, eps, exp_avg, exp_avg_sq, step"),
        (torch.optim.RMSprop, "without dampening, with alpha, eps, square_avg, step"),
        (torch.optim.Rprop, "without momentum, dampening, weight_decay, with prev, step, step_size"),
    ],
)
@pytest.mark.parametrize("stepped", [True, False])
def test_the_state_of_another_optimizer_is_refused_before_anything_changes(
    theirs: Any, words: str, stepped: bool
) -> None:
    other, p = optimizers(theirs)
    p.grad = torch.ones(2)
    if stepped:
        other.step()
    optimizer, w = optimizers(lambda params: mg.GradientDescent(params, lr=0.1, momentum=0.9))
    w.grad = torch.ones(2)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError) as error:
        optimizer.load_state_dict(other.state_dict())
    if stepped:
        assert str(error.value) == (
            f"GradientDescent expected a state dict of its own or of torch.optim.SGD, got another optimizer's {words}. "
            "Load it into an optimizer of the class that it comes from, or go on without it."
        )
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)
    optimizer.step()


@pytest.mark.parametrize("name", ["lr", "momentum", "dampening", "weight_decay"])
@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("later", [True, False])
def test_fractions_are_numbers_too(name: str, factored: bool, later: bool) -> None:
    trained = []
    for kind in (Fraction, float):
        torch.manual_seed(0)
        layer = mg.Dense(300, 300)
        options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.25}
        given = {name: kind(Fraction(1, 8))}
        optimizer = mg.GradientDescent(layer.parameters(), **{**options, **({} if later else given)}, factored=factored)
        optimizer.param_groups[0].update(given)
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.ones(2, 300)).square().sum().backward()
            optimizer.step()
        trained.append(layer.weight.detach())
    assert torch.equal(*trained)


def test_an_option_of_a_wrong_type_that_is_set_later_is_named() -> None:
    optimizer, w = optimizers(lambda params: mg.GradientDescent(params, lr=0.1))
    w.grad = torch.ones(2)
    optimizer.param_groups[0]["lr"] = "0.1"
    with pytest.raises(TypeError) as error:
        optimizer.step()
    assert str(error.value) == "GradientDescent expected `lr` to be a real number, got '0.1'. Pass for example lr=0.1."
    assert torch.equal(w, torch.ones(2))


@pytest.mark.parametrize("source", [torch.optim.SGD, mg.GradientDescent])
def test_a_train_step_goes_on_from_a_loaded_state(source: Any) -> None:
    """An SGD's or a GradientDescent's, while its step is recorded, as autograd does."""
    x, y = torch.randn(4, 3), torch.rand(4, 2)
    torch.manual_seed(0)
    models = [mg.MLP([3, 4, 2], "tanh", dtype=torch.float64) for _ in range(3)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    x, y, loss = x.double(), y.double(), mg.QuadraticLoss()
    theirs = source(models[0].parameters(), lr=0.2, momentum=0.7)
    by_hand = mg.GradientDescent(models[1].parameters(), lr=0.1, momentum=0.9)
    by_autograd = mg.GradientDescent(models[2].parameters(), lr=0.1, momentum=0.9)
    step = mg.TrainStep(models[1], loss, by_hand)

    def autograd_step(model: torch.nn.Module, optimizer: Any) -> None:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()

    for i in range(6):
        autograd_step(models[0], theirs)
        step(x, y)
        autograd_step(models[2], by_autograd)
        if i == 2:
            for optimizer in (by_hand, by_autograd):
                optimizer.load_state_dict(copy.deepcopy(theirs.state_dict()))  # which holds the very tensors
    for p, q in zip(models[1].parameters(), models[2].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
