"""`convert(model, factored=True)`: the one call for users of a model of their own."""

import re
from typing import Any

import pytest
import torch
from torch import nn

import manualgrad as mg
from tests.factored.nets import SIZES, assert_same_weights, batch, train, weights


pytestmark = pytest.mark.usefixtures("small_weights_too")


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(*pair, dtype=torch.float64) for pair in zip(SIZES[:-1], SIZES[1:], strict=True))
    return nn.Sequential(next(layers), nn.Tanh(), next(layers))


def are_factored(model: Any) -> list[bool]:
    model.zero_grad()
    x, y = batch()
    nn.functional.mse_loss(model(x), y).backward()
    return [isinstance(layer.weight.grad, mg.FactoredGradient) for layer in (model[0], model[2])]


@pytest.mark.parametrize("optimizer_first", [True, False])
def test_one_call_and_any_optimizer_trains_on_factors(optimizer_first: bool) -> None:
    model, other = plain(), plain()
    optimizer = torch.optim.AdamW(model.parameters()) if optimizer_first else None
    assert mg.convert(model, factored=True) is model
    with mg.forbid_densify():
        train(model, optimizer or torch.optim.AdamW(model.parameters()), steps=5)
    assert isinstance(model[0].weight.grad, mg.FactoredGradient)
    train(other, torch.optim.AdamW(other.parameters()), steps=5)
    assert_same_weights(model, other)


def test_only_the_chosen_layers_are_asked() -> None:
    assert are_factored(mg.convert(plain(), exclude="2", factored=True)) == [True, False]
    assert are_factored(mg.convert(mg.convert(plain()), include="2", factored=True)) == [False, True]
    assert are_factored(mg.convert(mg.convert(plain(), factored=True))) == [True, True]  # again: changes nothing


def test_revert_withdraws_what_convert_asked_and_nothing_else() -> None:
    model = plain()
    before, attributes = weights(model), model[0].weight.__dict__.copy()
    model[2] = mg.Dense.from_linear(model.get_submodule("2"))  # type: ignore[arg-type]  # from the start
    mg.revert(mg.convert(model, factored=True))
    assert model[0].weight.__dict__ == attributes
    assert are_factored(mg.convert(model)) == [False, False]
    mg.keep_factored(mg.convert(model, factored=True)[2])
    assert are_factored(mg.convert(mg.revert(model))) == [False, True]
    assert all(map(torch.equal, weights(model), before))


def test_a_flag_that_is_none_is_refused_before_anything_changes() -> None:
    model: Any = plain()
    sentence = "convert expected `factored` to be True or False, got 'yes'. Pass factored=True."
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        mg.convert(model, factored="yes")  # type: ignore[arg-type]
    assert type(model[0]) is nn.Linear
