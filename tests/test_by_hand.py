"""The whole stack against `by_hand`, which shares no line with it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import manualgrad as mg
from tests.by_hand import Network


BATCH = 10
ETA = 3.0


@pytest.fixture
def digits() -> tuple[Tensor, Tensor]:
    """The training part of scikit-learn's handwritten digits: pixels in [0, 1] and one-hot rows."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(images))[: len(images) * 4 // 5]
    return torch.tensor(images)[order] / 16, F.one_hot(torch.tensor(labels)[order], 10).double()


@pytest.mark.usefixtures("small_weights_too")
@pytest.mark.parametrize("factored", [True, False])
def test_an_epoch_of_the_digits(digits: tuple[Tensor, Tensor], factored: bool) -> None:
    images, targets = digits
    model = mg.MLP([64, 12, 10], "sigmoid", "sigmoid", dtype=torch.float64)
    layers: list[Any] = list(model)
    network = Network([layer.weight.tolist() for layer in layers], [layer.bias.tolist() for layer in layers])
    loss_function = mg.QuadraticLoss()
    optimizer = mg.GradientDescent(model.parameters(), lr=ETA, factored=factored)

    for x, y in zip(images.split(BATCH), targets.split(BATCH), strict=True):
        optimizer.zero_grad()
        loss = loss_function(model(x), y)
        loss.backward()
        assert isinstance(layers[0].weight.grad, mg.FactoredGradient) is factored
        optimizer.step()
        cost = network.train_on(list(zip(x.tolist(), y.tolist(), strict=True)), ETA)
        assert abs(loss.item() - cost) <= 1e-12

    for layer, w, b in zip(layers, network.weights, network.biases, strict=True):
        torch.testing.assert_close(layer.weight.detach(), torch.tensor(w, dtype=torch.float64), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer.bias.detach(), torch.tensor(b, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_the_errors_of_every_layer() -> None:
    """delta itself, layer by layer: what backpropagation hands to each z."""
    model = mg.MLP([3, 4, 5, 2], "sigmoid", "sigmoid", dtype=torch.float64)
    layers: list[Any] = list(model)
    network = Network([layer.weight.tolist() for layer in layers], [layer.bias.tolist() for layer in layers])
    x, y = torch.rand(3, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    mg.QuadraticLoss()(model(x), y).backward()
    for layer, delta in zip(layers, network.backpropagate(x.tolist(), y.tolist()), strict=True):
        torch.testing.assert_close(layer.bias.grad, torch.tensor(delta, dtype=torch.float64), rtol=1e-12, atol=1e-15)
