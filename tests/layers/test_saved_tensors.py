"""What is saved for the backward pass are tensors alone, as tools that draw the graph expect."""

from typing import Any

import pytest
import torch
from torch import nn

import manualgrad as mg


torchviz: Any = pytest.importorskip("torchviz")
pytestmark = pytest.mark.filterwarnings("ignore:distutils Version classes")  # which torchviz 0.0.3 compares


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
@pytest.mark.parametrize("frozen", [None, "weight", "bias", "input"])
def test_make_dot_draws_a_dense(activation: str, frozen: str | None) -> None:
    layer, x = mg.Dense(3, 2, activation=activation), torch.randn(4, 3, requires_grad=frozen != "input")
    for name, p in layer.named_parameters():
        p.requires_grad_(name != frozen)
    assert "DenseFunction" in str(torchviz.make_dot(layer(x).sum()))


def test_make_dot_draws_a_converted_model() -> None:
    model = mg.convert(nn.Sequential(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 2)))
    drawing = str(torchviz.make_dot(model(torch.randn(2, 3)).sum(), dict(model.named_parameters())))
    assert "DenseFunction" in drawing and "ActivationFunction" in drawing
