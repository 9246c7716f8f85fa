"""Which activation was probably meant."""

from typing import Any

import pytest
import torch
from torch import nn

import manualgrad as mg
from manualgrad.activation.did_you_mean import closest, did_you_mean
from tests.activation.unknown_activation import unknown_activation


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("RELU", "relu"),
        ("gelu_tahn", "gelu_tanh"),
        ("soft plus", "softplus"),
        ("selu", None),  # is a function of its own, as are the next two
        ("relu6", None),
        ("hardtanh", None),
        ("", None),
        ("cosine", None),
        (nn.Identity(), "identity"),
        (nn.GELU(approximate="tanh"), None),
        (nn.GELU(), "gelu"),
        (nn.Softplus, "softplus"),
        (type("ReLU", (nn.Module,), {})(), None),  # may compute anything
        (None, None),
        ([], None),
    ],
    ids=repr,
)
def test_the_same_function_or_none(given: object, found: str | None) -> None:
    assert closest(given, mg.activations) == found
    assert did_you_mean(given, mg.activations) == ("" if found is None else f" Did you mean {found!r}?")


@pytest.mark.parametrize(("given", "meant"), [("linear", "identity"), ("none", "identity"), ("Swish", "silu")])
def test_names_of_other_libraries(given: str, meant: str) -> None:
    with pytest.raises(ValueError) as caught:
        mg.Dense(2, 3, activation=given)
    assert str(caught.value) == unknown_activation(given, f" Did you mean {meant!r}?")


SOFTMAX = (
    "An activation is elementwise, and {} is not. Leave the last layer without an activation and train with "
    "mg.SoftmaxCrossEntropyLoss(), which takes z; for probabilities call torch.softmax(outputs, -1)."
)


@pytest.mark.parametrize("name", ["softmax", "Softmax", "log_softmax", "LogSoftmax"])
def test_a_softmax_is_not_to_be_defined_but_left_to_the_loss(name: str) -> None:
    with pytest.raises(ValueError) as caught:
        mg.MLP([2, 3], output_activation=name)
    known = unknown_activation(name).split("Define your own")[0]
    assert str(caught.value) == known + SOFTMAX.format(name)


@pytest.mark.parametrize(
    "given", [nn.Softmax(-1), nn.Softmax, torch.softmax, nn.functional.log_softmax, nn.LogSoftmax(-1)]
)
def test_a_softmax_of_pytorch(given: Any) -> None:
    with pytest.raises(TypeError) as caught:
        mg.Dense(2, 3, activation=given)
    name = getattr(given, "__name__", type(given).__name__)
    assert str(caught.value) == (
        f"Expected `activation` to be a name, an Activation or None, got {given!r}. {SOFTMAX.format(name)}"
    )
