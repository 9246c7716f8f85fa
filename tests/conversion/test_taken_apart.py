"""A model that uses the parts of its nn.Sequential finds in each slot what it expects: nothing is fused there."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import manualgrad as mg
from manualgrad.conversion.taken_apart import taken_apart


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net: Any = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.blocks: Any = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))
        self.branches: Any = nn.ModuleDict({"left": nn.Sequential(nn.Linear(4, 4), nn.SiLU())})


class Whole(Model):
    """Calls each as a whole, in the ways people do."""

    def forward(self, x):
        x = self.net(x) + self.blocks[0](x)
        for _, block in enumerate(self.blocks):
            x = block(x)
        for block in reversed(self.blocks):
            x = checkpoint(block, x, use_reentrant=False)
        x = checkpoint(self.net, x, use_reentrant=False)
        for _, branch in self.branches.items():
            x = x + branch(x)
        return sum(block(x) for block in self.blocks) + self.branches["left"](x)


class FirstLayerAlone(Model):
    def forward(self, x):
        return self.net[0](x) + self.net(x)


class Features(Model):
    def forward(self, x):
        features = []
        for layer in self.net:
            x = layer(x)
            features.append(x)
        return torch.cat(features)


class Slice(Model):
    def forward(self, x):
        return torch.tanh(self.net[:1](x))


class BlocksApart(Model):
    def forward(self, x):
        for block in self.blocks:
            x = block[1](x - block[0](x))
        return x


class BlockApart(Model):
    def forward(self, x):
        return self.blocks[1][0](x) + self.branches["left"][0](x)


class HandsItOn(Model):
    def forward(self, x):
        return first_of(self.net)(x)


class InAnotherMethod(Model):
    def forward(self, x):
        return self.features(x)

    def features(self, x):
        first, *_ = self.net
        return first(x)


class Inherited(FirstLayerAlone):
    pass


def first_of(sequential):
    return sequential[0]


@pytest.mark.parametrize(
    "build", [FirstLayerAlone, Features, Slice, BlocksApart, BlockApart, HandsItOn, InAnotherMethod, Inherited, Whole]
)
def test_the_same_outputs_whatever_a_model_does_with_its_parts(build: Any) -> None:
    model, x = build().double(), torch.randn(3, 4, dtype=torch.float64)
    expected = model(x)
    assert len(mg.conversion_report(mg.convert(model)).converted) == 5
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(mg.revert(model)(x), expected)


def test_what_is_called_as_a_whole_is_fused() -> None:
    assert not taken_apart(Whole())
    model = mg.convert(Whole())
    activations = [layer.activation.name for layer in model.modules() if isinstance(layer, mg.Dense)]
    assert activations == ["relu", "identity", "tanh", "tanh", "silu"]


def test_the_report_says_who_takes_it_apart() -> None:
    note = "ReLU not fused: FirstLayerAlone does more with the nn.Sequential than call it"
    assert mg.conversion_report(mg.convert(FirstLayerAlone()))[0].note == note


def test_a_class_whose_source_cannot_be_read_may_do_anything() -> None:
    namespace: dict[str, Any] = {"Model": Model, "__name__": "nowhere"}
    exec("class Unread(Model):\n    def forward(self, x):\n        return self.net[0](x)", namespace)
    model = namespace["Unread"]()
    assert len(taken_apart(model)) == 4
    x = torch.randn(3, 4)
    expected = model(x)
    assert torch.equal(mg.convert(model)(x), expected)


def test_pytorchs_own_wrappers_call_the_whole() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    compiled: Any = torch.compile(model, backend="eager")
    assert not taken_apart(compiled)
    assert not taken_apart(nn.DataParallel(model))
