"""Which activation was probably meant."""

import pytest
from torch import nn

import manualgrad as mg
from manualgrad.activation.did_you_mean import closest, did_you_mean


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
