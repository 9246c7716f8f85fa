import copy
import pickle

import pytest
import torch
from torch import nn

import manualgrad as mg


def test_the_first_input_decides():
    layer = mg.LazyDense(3, activation="tanh")
    assert isinstance(layer, nn.LazyLinear) and isinstance(layer, mg.Dense)
    assert layer.has_uninitialized_params()
    x = torch.randn(2, 5, 4)
    y = layer(x)
    assert type(layer) is mg.Dense
    assert (layer.in_features, layer.out_features, layer.weight.shape) == (4, 3, (3, 4))
    torch.testing.assert_close(y, torch.tanh(nn.functional.linear(x, layer.weight, layer.bias)))
    y.sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.shape == (3, 4)


def test_same_initialisation_as_lazy_linear():
    x = torch.randn(2, 4)
    torch.manual_seed(1)
    expected = nn.LazyLinear(3)
    expected(x)
    torch.manual_seed(1)
    layer = mg.LazyDense(3)
    layer(x)
    torch.testing.assert_close(layer.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_state_dicts_of_a_dense_load_before_the_first_input():
    layer, loaded = mg.Dense(4, 3, bias=False), mg.LazyDense(3, bias=False)
    loaded.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4)
    assert torch.equal(loaded(x), layer(x))


@pytest.mark.parametrize(
    "twin", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["copy", "pickle"]
)
def test_copies_are_lazy_too(twin):
    layer = twin(mg.LazyDense(3, activation="gelu"))
    assert layer(torch.randn(2, 6)).shape == (2, 3)
    assert layer.activation.name == "gelu"


def test_optimizers_made_before_see_the_parameters():
    layer = mg.LazyDense(3, device="cpu")
    optimizer = mg.GradientDescent(layer.parameters(), lr=0.1)
    layer(torch.randn(2, 4)).sum().backward()
    before = layer.weight.detach().clone()
    optimizer.step()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.detach(), before - 0.1 * layer.weight.grad)


@pytest.mark.parametrize(
    "input, error, sentence",
    [
        (
            torch.tensor(1.0),
            ValueError,
            "LazyDense expected a first input of shape (..., features in), got a tensor without any axis. Give it at least one.",
        ),
        (
            [1.0],
            TypeError,
            "LazyDense expected a torch.Tensor as its first input, got list. Convert it with torch.as_tensor(input).",
        ),
    ],
)
def test_a_first_input_that_decides_nothing(input, error, sentence):
    layer = mg.LazyDense(3)
    with pytest.raises(error) as raised:
        layer(input)
    assert str(raised.value) == sentence
    assert layer(torch.randn(2, 4)).shape == (2, 3)
