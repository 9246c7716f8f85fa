"""What convert may touch, and why not the rest."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import manualgrad as mg
from tests.conversion.models_to_convert import identity_of, scripted


class MyReLU(nn.ReLU):
    def forward(self, x):
        return 2 * super().forward(x)


def patched_activation():
    activation = nn.ReLU()
    activation.forward = lambda x: x  # type: ignore[method-assign, assignment]
    return activation


@pytest.mark.parametrize("activation", [nn.PReLU(), nn.Softmax(-1), nn.RReLU(), nn.CELU(2.0), nn.LayerNorm(4)], ids=str)
def test_what_is_not_known_is_no_row_of_the_report(activation):
    model = nn.Sequential(nn.Linear(4, 4), activation)
    before = identity_of(model)["1"]
    assert len(mg.conversion_report(mg.convert(model))) == 1
    assert identity_of(model)["1"] == before


@pytest.mark.parametrize(
    "build, reason",
    [
        (MyReLU, "of type MyReLU, not nn.ReLU itself: what it overrides would be lost"),
        (patched_activation, "its forward has been replaced on the instance"),
    ],
)
def test_activations_that_are_left_alone_and_why(build, reason):
    model = nn.Sequential(nn.Linear(4, 4), build())
    before = identity_of(model)["1"]
    row = mg.conversion_report(mg.convert(model))[1]
    assert (row.name, row.status, row.note, row.kind) == ("1", "left", reason, "activation")
    assert identity_of(model)["1"] == before
    assert mg.conversion_report(model).left == {}


class Conv1D(nn.Module):
    """As in GPT-2: a weight of (features in, features out)."""

    def __init__(self, n, m):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(n, m)), nn.Parameter(torch.zeros(m))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


def test_parameters_in_layers_that_are_linear_but_no_nn_linear_are_counted():
    shared = Conv1D(4, 6)
    model = mg.convert(nn.Sequential(nn.Linear(4, 4), shared, Conv1D(6, 4), shared, nn.LayerNorm(6)))
    model[2].bias = shared.bias  # no sense, but shared: counted once
    report = mg.conversion_report(model)
    assert report.other_parameters == 4 * 6 + 6 + 6 * 4
    assert report.left["2"] == "linear, but no nn.Linear: autograd differentiates it"
    assert str(report).splitlines()[-1] == (
        "1 of 3 linear layers converted. 54 parameters are in layers that are linear but no nn.Linear: Conv1D."
    )


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def patched():
    layer = nn.Linear(3, 3)
    layer.forward = lambda x: x  # type: ignore[method-assign, assignment]
    return layer


def integer():
    layer = nn.Linear(3, 3)
    layer.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    return layer


class QuantisedLinear(nn.Linear):
    __module__ = "torch.ao.nn.quantized.modules.linear"


LEFT = {
    "subclass": (lambda: Doubled(3, 3), "of type Doubled, not nn.Linear itself: what it overrides would be lost"),
    "attention": (
        lambda: nn.MultiheadAttention(4, 2).out_proj,
        "read, never called (nn.MultiheadAttention)",
    ),
    "lazy": (
        lambda: nn.LazyLinear(3),
        "lazy: its shape is not known yet; run one batch through the model, then convert",
    ),
    "parametrized": (
        lambda: parametrizations.orthogonal(nn.Linear(3, 3)),
        "parametrized: convert it before registering the parametrization",
    ),
    "pruned": (
        lambda: prune.l1_unstructured(nn.Linear(3, 3), "weight", 0.5),
        "its weight is not a Parameter: a hook recomputes it (weight_norm, spectral_norm, pruning)",
    ),
    "patched": (patched, "its forward has been replaced on the instance"),
    "integer": (integer, "quantised: its weight is torch.int8"),
    "quantised": (lambda: QuantisedLinear(3, 3), "quantised: it has a kernel of its own"),
    "dense": (lambda: mg.Dense(3, 3), "a Dense from the start"),
}


@pytest.mark.parametrize("build, reason", LEFT.values(), ids=LEFT.keys())
def test_what_is_left_alone_and_why(build, reason):
    model = nn.Sequential(build(), nn.Dropout())
    before = identity_of(model)
    mg.convert(model)
    assert identity_of(model) == before
    assert mg.conversion_report(model).left == {"0": reason}
    assert identity_of(mg.revert(model)) == before


def test_a_scripted_linear_is_reported():
    model = mg.convert(scripted())
    report = mg.conversion_report(model)
    assert report.converted == ["0"]
    assert report.left == dict.fromkeys(
        ["2.0", "2.2"], "scripted: its code is compiled; convert before torch.jit.script"
    )
