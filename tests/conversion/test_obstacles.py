"""What convert may touch, what it fuses, and why not the rest."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import manualgrad as mg
from tests.conversion.models_to_convert import identity_of, scripted


FUSED = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.LeakyReLU(),
    nn.LeakyReLU(0.2),
    nn.LeakyReLU(-0.3),
    nn.ELU(),
    nn.ELU(0.3),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Softplus(),
    nn.Softplus(2.0, 0.5),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.SiLU(inplace=True),
]


@pytest.mark.parametrize("activation", FUSED, ids=str)
def test_an_activation_is_fused_with_its_parameters(activation):
    model = nn.Sequential(nn.Linear(4, 50), activation, nn.Linear(50, 2)).double()
    x = 3 * torch.randn(5, 4, dtype=torch.float64)
    expected = model(x), torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    mg.convert(model)
    assert type(model[1]) is nn.Identity
    assert type(model[0]) is mg.Dense and model[0].activation.name != "identity"
    actual = model(x), torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)
    assert mg.revert(model)[1] is activation


class MyReLU(nn.ReLU):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "activation",
    [MyReLU(), nn.PReLU(), nn.Softmax(-1), nn.RReLU(), nn.CELU(2.0), nn.Hardtanh(), nn.LayerNorm(4)],
    ids=str,
)
def test_what_is_not_known_stays_unfused(activation):
    model = mg.convert(nn.Sequential(nn.Linear(4, 4), activation))
    assert model[1] is activation
    assert model[0].activation is mg.activations["identity"]


def shared_activation():
    activation = nn.ReLU()
    return nn.Sequential(nn.Linear(4, 4), activation, nn.Linear(4, 4), activation)


def shared_layer():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


def hooked_layer():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model[0].register_forward_hook(lambda module, inputs, output: None)
    return model


def hooked_activation():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model[1].register_full_backward_pre_hook(lambda module, grad_output: None)
    return model


class Reversed(nn.Sequential):
    def forward(self, x):
        for layer in reversed(self):
            x = layer(x)
        return x


@pytest.mark.parametrize(
    "build, note",
    [
        (shared_activation, "ReLU not fused: it is used in several places"),
        (shared_layer, "ReLU not fused: the layer is used in several places; also 2"),
        (hooked_layer, "ReLU not fused: the layer has hooks, which would see a instead of z"),
        (hooked_activation, "ReLU not fused: it has hooks or a forward of its own"),
        (lambda: Reversed(nn.Linear(4, 4), nn.ReLU()), ""),
    ],
)
def test_an_activation_that_others_see_stays_unfused(build, note):
    model = build()
    x = torch.randn(3, 4)
    expected, activation = model(x), model[1]
    mg.convert(model)
    assert torch.equal(model(x), expected)
    assert model[1] is activation
    assert mg.conversion_report(model)[0].note == note


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
    model = nn.Sequential(build(), nn.ReLU())
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
