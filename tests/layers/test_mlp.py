"""MLP: a stack of Dense layers from sizes."""

import copy
import io
import pickle
import re
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import manualgrad as mg
from tests.activation.unknown_activation import unknown_activation


EXAMPLE = "Pass for example sizes=[784, 30, 10]."


def test_layers() -> None:
    model = mg.MLP([5, 4, 3, 2], "tanh", "sigmoid", bias=False, dtype=torch.float64)
    assert isinstance(model, nn.Sequential)
    layers: list[Any] = list(model)
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(5, 4), (4, 3), (3, 2)]
    assert [layer.activation.name for layer in layers] == ["tanh", "tanh", "sigmoid"]
    assert all(layer.bias is None and layer.weight.dtype == torch.float64 for layer in layers)
    assert model.sizes == (5, 4, 3, 2)


def test_defaults_and_the_shortest_one() -> None:
    layers: list[Any] = [*mg.MLP([3, 4, 2]), *mg.MLP((3, 2))]
    assert [layer.activation.name for layer in layers] == ["relu", "identity", "identity"]


@pytest.mark.parametrize("sizes", [torch.Size([3, 2]), numpy.array([3, 2]), iter([3, 2]), [numpy.int64(3), 2]])
def test_any_sequence_of_integers(sizes: object) -> None:
    assert mg.MLP(sizes).sizes == (3, 2)  # type: ignore[arg-type]


def test_computes_what_its_twin_computes() -> None:
    model = mg.MLP([5, 4, 3], "tanh")
    twin = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    twin[0].load_state_dict(model[0].state_dict())
    twin[2].load_state_dict(model[1].state_dict())
    x = torch.randn(2, 7, 5)
    assert torch.equal(model(x), twin(x))


def test_slices_are_plain_stacks_with_the_same_layers_and_keys() -> None:
    model = mg.MLP([5, 4, 3, 2])
    part = model[1:]
    assert type(part) is nn.Sequential
    assert part[0] is model[1] and part[1] is model[2]
    assert list(part.state_dict()) == ["1.weight", "1.bias", "2.weight", "2.bias"]
    assert model[-1] is model[2]
    assert model[:2](torch.randn(6, 5)).shape == (6, 3)
    assert len(model[5:]) == 0


def test_sequential_operations_still_work() -> None:
    model = mg.MLP([3, 3])
    assert len(model + mg.MLP([3, 2])) == 2
    assert len(model.append(nn.Flatten())) == 2
    assert len(mg.MLP([3, 3]) * 2) == 2


def test_copies() -> None:
    model, x = mg.MLP([5, 4, 3], "gelu"), torch.randn(2, 5)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    loaded = mg.MLP([5, 4, 3], "gelu")
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert torch.equal(twin(x), model(x))
        assert twin.sizes == model.sizes


@pytest.mark.parametrize(
    ("sizes", "error", "sentence"),
    [
        ([], ValueError, "MLP expected `sizes` to have at least two entries, features in and features out, got []."),
        ([3], ValueError, "MLP expected `sizes` to have at least two entries, features in and features out, got [3]."),
        ([3, 0, 2], ValueError, "MLP expected every entry of `sizes` to be positive, got [3, 0, 2]."),
        ([3, -1], ValueError, "MLP expected every entry of `sizes` to be positive, got [3, -1]."),
        ([3, 2.0], TypeError, "MLP expected `sizes` to be a sequence of integers, got [3, 2.0]."),
        ([3, True], TypeError, "MLP expected `sizes` to be a sequence of integers, got [3, True]."),
        (["3", 2], TypeError, "MLP expected `sizes` to be a sequence of integers, got ['3', 2]."),
        ("32", TypeError, "MLP expected `sizes` to be a sequence of integers, got '32'."),
        (32, TypeError, "MLP expected `sizes` to be a sequence of integers, got 32."),
        (None, TypeError, "MLP expected `sizes` to be a sequence of integers, got None."),
    ],
)
def test_bad_sizes(sizes: object, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(f'{sentence} {EXAMPLE}')}$"):
        mg.MLP(sizes)  # type: ignore[arg-type]


def test_an_unknown_activation_fails_before_random_numbers_are_drawn() -> None:
    state, sentence = torch.get_rng_state(), unknown_activation("relv", " Did you mean 'relu'?")
    for bad in ({"activation": "relv"}, {"output_activation": "relv"}):
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            mg.MLP([3, 4, 2], **bad)  # type: ignore[arg-type]
        assert torch.equal(torch.get_rng_state(), state)
