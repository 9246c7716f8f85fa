"""What version 0.1 wrote, whose files lay elsewhere, loads: whole pickled models, state dicts, Lightning checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import manualgrad as mg


WRITTEN = Path(__file__).parent / "version_0_1"


@pytest.fixture
def whole() -> dict[str, Any]:
    return torch.load(WRITTEN / "whole_model.pt", weights_only=False)


def test_a_whole_model_computes_what_it_did(whole: dict[str, Any]) -> None:
    model = whole["model"]
    assert [type(layer) for layer in model] == [mg.Dense, mg.MLP, nn.Dropout, nn.Sequential, mg.Dense]
    assert torch.equal(model(whole["input"]), whole["output"])


def test_and_trains(whole: dict[str, Any]) -> None:
    model, optimizer = whole["model"], whole["optimizer"]
    assert type(optimizer) is mg.GradientDescent and len(optimizer.state) == 12
    before = whole["loss"](model(whole["input"]), torch.zeros(2, 3))
    before.backward()
    optimizer.step()
    assert whole["loss"](model(whole["input"]), torch.zeros(2, 3)) < before
    assert mg.compare(model, whole["loss"], whole["input"], torch.zeros(2, 3)).ok


def test_revert_refuses_a_layer_into_which_the_convert_of_0_1_moved_an_activation(whole: dict[str, Any]) -> None:
    with pytest.raises(
        RuntimeError, match=r"^revert expected .3\.0. to return z, as convert left it, got the activation"
    ):
        mg.revert(whole["model"])
    assert torch.equal(whole["model"](whole["input"]), whole["output"])


def test_a_gradient_keeps_its_factors(whole: dict[str, Any]) -> None:
    gradient = whole["gradient"]
    assert type(gradient) is mg.FactoredGradient and gradient.rank == 2
    assert torch.equal(gradient.to_dense(), torch.full((3, 4), 2.0))


def test_state_dicts(whole: dict[str, Any]) -> None:
    model = nn.Sequential(
        mg.Dense(4, 6),
        mg.MLP([6, 5, 5]),
        nn.Dropout(),
        mg.convert(nn.Sequential(nn.Linear(5, 5), nn.LeakyReLU(0.2), nn.Linear(5, 3), nn.Sigmoid())),
        mg.Dense(3, 3),
    )
    assert not any(model.load_state_dict(whole["state_dict"]))
    optimizer = mg.GradientDescent(model.parameters(), lr=1.0)
    optimizer.load_state_dict(whole["optimizer_state"])
    assert optimizer.param_groups[0]["lr"] == 0.1 and len(optimizer.state) == 12


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Lightning 2.6, calling jsonargparse
def test_a_lightning_checkpoint() -> None:
    pytest.importorskip("manualgrad.lightning")
    from manualgrad.cli.checkpoint import load_backprop_module

    module = load_backprop_module(WRITTEN / "lightning_checkpoint.pt")
    assert module.model.sizes == (64, 10)
    assert module(torch.zeros(1, 64)).isfinite().all()


def test_public_names_say_where_users_import_them_from() -> None:
    lightning = pytest.importorskip("manualgrad.lightning")
    for module in (mg, lightning):
        for name in module.__all__:
            if name != "activations":
                assert getattr(module, name).__module__ == module.__name__
