"""However a layer or an activation is reached, it computes after the conversion what it computed before."""

import copy
import functools
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fusion
from torch.utils.checkpoint import checkpoint

import manualgrad as mg


class Model(nn.Module):
    kept: Any

    def __init__(self) -> None:
        super().__init__()
        self.net: Any = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(0.2), nn.Linear(4, 4), nn.ELU(0.5), nn.Linear(4, 4))
        self.blocks: Any = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.GELU()) for _ in range(2))
        self.named: Any = nn.ModuleDict({"in": nn.Linear(4, 4), "act": nn.ReLU(inplace=True)})
        kept = nn.Linear(4, 4)
        self.__dict__["kept"] = kept  # no submodule: not converted
        self.listed = [self.net[0], self.net[1]]
        self.first = functools.partial(self.net[0])
        self.bound = self.net[2].forward
        self.closure = lambda x: self.net[1](self.net[0](x))
        self.weak = weakref.ref(self.net[0])
        self.way: Callable[[Model, Tensor], Tensor] = lambda model, x: model.net(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def helper(model: Model, x: Tensor) -> Tensor:
    return model.net[0](x)


def residual(layers: int) -> Callable[[Model, Tensor], Tensor]:
    def way(model: Model, x: Tensor) -> Tensor:
        h = model.net[:layers](x)
        h += x
        return h

    return way


def chained(model: Model, x: Tensor) -> Tensor:
    for layer in itertools.chain.from_iterable(model.blocks):
        x = x + layer(x)
    return x


def with_a_hook_on(name: str) -> Callable[[Model, Tensor], Tensor]:
    def way(model: Model, x: Tensor) -> Tensor:
        handle: Any = model.get_submodule(name).register_forward_hook(lambda module, inputs, output: 2 * output)
        y = model.net(x)
        handle.remove()
        return y

    return way


def collected_by_hooks(model: Model, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handles: Any = [m.register_forward_hook(lambda module, inputs, output: seen.append(output)) for m in model.net]
    model.net(x)
    for handle in handles:
        handle.remove()
    return sum(seen[1:], seen[0])


def weights_read(model: Model, x: Tensor) -> Tensor:
    layer = model.net[0]
    return F.linear(x, layer.weight, layer.bias) + F.linear(x, layer.weight.t()) + layer(x)


def functional_call(model: Model, x: Tensor) -> Tensor:
    return torch.func.functional_call(model.net, dict(model.net.named_parameters()), (x,))


WAYS: dict[str, Callable[[Model, Tensor], Tensor]] = {
    "whole": lambda model, x: model.net(x),
    "index": lambda model, x: model.net[0](x),
    "activation alone": lambda model, x: model.net[1](x * 1),
    "slice": lambda model, x: model.net[1:4](x),
    "loop": lambda model, x: functools.reduce(lambda a, layer: layer(a), model.net, x),
    "reversed": lambda model, x: functools.reduce(lambda a, layer: layer(a), reversed(model.net), x),
    "chained": chained,
    "enumerate": lambda model, x: sum((i + layer(x) for i, layer in enumerate(model.net)), x),
    "getattr": lambda model, x: getattr(model, "net")[0](x),  # noqa: B009
    "_modules": lambda model, x: model._modules["net"]._modules["2"](x),  # type: ignore
    "children": lambda model, x: next(model.children())[0](x),  # type: ignore
    "modules": lambda model, x: next(m for m in model.modules() if isinstance(m, nn.Linear))(x),
    "activations by class": lambda model, x: next(m for m in model.modules() if isinstance(m, nn.ELU))(x * 1),
    "get_submodule": lambda model, x: model.get_submodule("net.0")(x),
    "named_modules": lambda model, x: dict(model.named_modules())["blocks.1.0"](x),
    "helper": helper,
    "partial": lambda model, x: model.first(x),
    "bound method": lambda model, x: model.bound(x),
    "__call__": lambda model, x: model.net[0].__call__(x),
    "forward": lambda model, x: model.net[1].forward(model.net[0].forward(x)),
    "closure": lambda model, x: model.closure(x),
    "weak reference": lambda model, x: model.weak()(x),  # type: ignore
    "list": lambda model, x: model.listed[1](model.listed[0](x)),
    "in __dict__": lambda model, x: model.__dict__["kept"](x) + model.__dict__["kept"](2 * x),
    "ModuleDict": lambda model, x: model.named["act"](model.named["in"](x)),
    "hook on the Sequential": with_a_hook_on("net"),
    "hook on the layer": with_a_hook_on("net.0"),
    "hook on the activation": with_a_hook_on("net.1"),
    "outputs collected by hooks": collected_by_hooks,
    "weights read": weights_read,
    "functional_call": functional_call,
    "checkpoint": lambda model, x: checkpoint(model.net, x, use_reentrant=False),
    "checkpoint of a part": lambda model, x: model.net[1](checkpoint(model.net[0], x, use_reentrant=False)),
    "+= after the layer": residual(1),
    "+= after LeakyReLU": residual(2),
    "+= after ELU": residual(4),
    "map": lambda model, x: sum(map(model.net[0], (x, 2 * x))),
    "methodcaller": lambda model, x: type(model.net[0]).__call__(model.net[0], x),
    "the class's forward": lambda model, x: nn.Linear.forward(model.net[0], x) + nn.ELU.forward(model.net[3], x * 1),
    "copy": lambda model, x: copy.copy(model.net[0])(x),
    "vmap": lambda model, x: torch.func.vmap(model.net)(x),
    "unsqueezed": lambda model, x: model.net(x[:, None])[:, 0],
    "row by row": lambda model, x: torch.stack([model.net(row) for row in x]),
}  # fmt: skip


def outputs_and_gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    y = model(x)
    y.square().sum().backward()
    assert x.grad is not None
    gradients = [x.grad.clone()] + [p.grad.clone() for p in model.parameters() if p.grad is not None]
    x.grad = None
    model.zero_grad()
    return y, gradients


def assert_the_same(model: nn.Module, change: Callable[[], Any]) -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y, gradients = outputs_and_gradients(model, x)
    change()
    new_y, new_gradients = outputs_and_gradients(model, x)
    assert torch.equal(new_y, y)
    torch.testing.assert_close(new_gradients, gradients, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_outputs_and_gradients_whatever_way_leads_there(way: str) -> None:
    model = Model().double()
    model.kept.double()
    model.way = WAYS[way]
    assert_the_same(model, lambda: mg.convert(model))
    assert len(mg.conversion_report(model).converted) == 6
    assert_the_same(model, lambda: mg.revert(model))


class LoRA(nn.Module):
    """As adapters are injected: around any nn.Linear, to be merged into its weight."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(2, base.in_features, dtype=base.weight.dtype))
        self.b = nn.Parameter(torch.randn(base.out_features, 2, dtype=base.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.t() @ self.b.t()

    def merged(self) -> nn.Linear:
        with torch.no_grad():
            self.base.weight += self.b @ self.a
        return self.base


def replace_linear(model: nn.Module, replacement: Callable[[Any], nn.Module], of: type[nn.Module] = nn.Linear) -> None:
    for parent in list(model.modules()):
        if not isinstance(parent, LoRA):
            for name, child in parent.named_children():
                if isinstance(child, of):
                    setattr(parent, name, replacement(child))


def rebuilt(layer: nn.Linear) -> nn.Module:
    new = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, dtype=layer.weight.dtype)
    new.load_state_dict(layer.state_dict())
    return new


class Halved(nn.Module):
    """As a low-precision swap: it takes over the weight and the bias, and nothing else."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(layer.weight.detach().half()), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias)


@pytest.mark.parametrize("tool", [LoRA, rebuilt, Halved])
def test_a_tool_that_wraps_or_rebuilds_linear_layers(tool: Callable[[Any], nn.Module]) -> None:
    plain, converted = (Model().net.double() for _ in range(2))
    converted.load_state_dict(plain.state_dict())
    mg.convert(converted)
    for model in (plain, converted):
        torch.manual_seed(0)
        replace_linear(model, tool)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    (y, gradients), (other_y, other_gradients) = (outputs_and_gradients(model, x) for model in (plain, converted))
    assert torch.equal(other_y, y)
    torch.testing.assert_close(other_gradients, gradients, rtol=1e-12, atol=1e-13)
    if tool is LoRA:
        for model in (plain, converted):
            replace_linear(model, LoRA.merged, of=LoRA)
        assert torch.equal(plain(x), converted(x)) and len(mg.conversion_report(converted).converted) == 3
        assert all(type(m) is not mg.Dense for m in mg.revert(converted))


@pytest.mark.parametrize("after", [nn.ReLU(), nn.Tanh()], ids=str)
def test_batch_norm_folded_into_the_layer_before_it(after: nn.Module) -> None:
    plain: Any = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), after, nn.Linear(6, 2)).double()
    plain(torch.randn(50, 4, dtype=torch.float64))  # running statistics
    plain.eval()
    converted = mg.convert(copy.deepcopy(plain))
    for model in (plain, converted):
        model[0] = fusion.fuse_linear_bn_eval(model[0], model[1])
        model[1] = nn.Identity()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    results = [outputs_and_gradients(model, x) for model in (plain, converted)]
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-12, atol=1e-13)
    assert type(converted[0]) is mg.Dense


def test_nobody_but_the_class_changes() -> None:
    model = Model()
    before = {name: (id(module), dict(module.__dict__)) for name, module in model.named_modules()}
    mg.convert(model)
    for name, module in model.named_modules():
        identity, attributes = before[name]
        added = {"activation", "path"} if isinstance(module, mg.Dense) else set()
        assert id(module) == identity and module.__dict__.keys() - added == attributes.keys()
        assert all(module.__dict__[key] is value for key, value in attributes.items())
