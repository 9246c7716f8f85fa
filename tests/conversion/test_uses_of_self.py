"""Ways into an nn.Sequential that a search for `self.net[0]` does not see: nothing may be fused there."""

import functools
import itertools
from typing import Any, Generic, TypeVar

import pytest
import torch
from torch import nn

import manualgrad as mg
from manualgrad.conversion.taken_apart import taken_apart


Item = TypeVar("Item")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net: Any = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.blocks: Any = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))


class Whole(Model, Generic[Item]):
    """Every way that is not one: these stay fused."""

    @torch.no_grad()
    def depth(self):
        return len(self.blocks) if self.net is not None else 0

    def train(self, mode=True):
        super(Model, self).train(mode)
        return self

    def loss(self, x):
        return self(x).sum()

    def forward(self, x):
        for i in range(self.depth()):
            x = self.blocks[i](x)
        return self.net(x)


class GetAttr(Model):
    def forward(self, x):
        return getattr(self, "net")[0](x)  # noqa: B009


class Modules(Model):
    def forward(self, x):
        return self._modules["net"][0](x)  # type: ignore[index]


class Children(Model):
    def forward(self, x):
        return next(self.children())[0](x)  # type: ignore[index]


class PositionalOnly(Model):
    def forward(self, /, x):
        return self.net[0](x)


class NoNamedSelf(Model):
    def forward(*arguments):
        return arguments[0].net[0](arguments[1])


class Alias(Model):
    def forward(self, x):
        me = self
        return me.net[0](x)


class Lambda(Model):
    forward = lambda self, x: self.net[0](x)  # noqa: E731


class Chained(Model):
    def forward(self, x):
        for layer in itertools.chain.from_iterable(self.blocks):
            x = x + layer(x)
        return x


def first_layer(self, x):
    return self.net[0](x)


class WrittenOutside(Model):
    forward = first_layer


class Partial(Model):
    forward = functools.partialmethod(first_layer)


class PatchedLater(Model):
    def forward(self, x):
        return self.net(x)


PatchedLater.forward = first_layer  # type: ignore[method-assign]


def and_the_first_layer(method):
    @functools.wraps(method)
    def wrapper(self, x):
        return method(self, x) + self.net[0](x)

    return wrapper


class Decorated(Model):
    @and_the_first_layer
    def forward(self, x):
        return self.net(x)


class MadeInInit(Model):
    def __init__(self) -> None:
        super().__init__()
        self.run = lambda x: self.net[0](x)

    def forward(self, x):
        return self.run(x)


class KeptAside(Model):
    def __init__(self) -> None:
        super().__init__()
        self.parts = [self.net[0]]

    def forward(self, x):
        return self.parts[0](x)


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part: Any = Whole()

    def forward(self, x):
        return self.part.net[0](x)


class HolderOfSeveral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Whole(), Whole()])

    def forward(self, x):
        for part in self.parts:
            x = part.net[0](x)  # type: ignore[index, operator]
        return x


class OwnForward(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))

    def forward(self, x):
        return self[0][0](x)  # type: ignore[index]


def second_of_two_with_one_name() -> nn.Module:
    if torch is None:

        class Twin(Model):
            def forward(self, x):
                return self.net(x)
    else:

        class Twin(Model):  # type: ignore[no-redef]
            def forward(self, x):
                return self.net[0](x)

    return Twin()


def replaced_on_the_instance() -> nn.Module:
    model: Any = Whole()
    model.forward = lambda x: model.net[0](x)
    return model


WAYS = [
    GetAttr, Modules, Children, PositionalOnly, NoNamedSelf, Alias, Lambda, Chained, WrittenOutside, Partial, PatchedLater,
    Decorated, MadeInInit, KeptAside, Holder, HolderOfSeveral, OwnForward, second_of_two_with_one_name,
    replaced_on_the_instance,
]  # fmt: skip


@pytest.mark.parametrize("build", WAYS)
def test_the_same_outputs_whatever_way_leads_inside(build: Any) -> None:
    model, x = build().double(), torch.randn(3, 4, dtype=torch.float64)
    expected = model(x)
    assert mg.conversion_report(mg.convert(model)).converted
    torch.testing.assert_close(model(x), expected)


def test_calls_of_the_whole_stay_fused() -> None:
    assert not taken_apart(Whole())
