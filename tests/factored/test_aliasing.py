"""Factors that share memory with what an optimizer writes: the step of a dense gradient, or nothing at all is changed."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from tests.factored.nets import assert_same_weights, batch, net, twin


pytestmark = pytest.mark.usefixtures("small_weights_too")

FORMS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "GradientDescent": mg.GradientDescent,
    "SGD loop": lambda ps, **options: torch.optim.SGD(ps, foreach=False, **options),
    "SGD foreach": lambda ps, **options: torch.optim.SGD(ps, foreach=True, **options),
    "SGD fused": lambda ps, **options: torch.optim.SGD(ps, fused=True, **options),
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"weight_decay": 0.1, "maximize": True},
]
each_form = pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


def layers() -> tuple[Any, Any]:
    """A layer of 60 x 60 and its twin by autograd."""
    torch.manual_seed(0)
    layer, other = mg.Dense(60, 60, dtype=torch.float64), nn.Linear(60, 60, dtype=torch.float64)
    other.load_state_dict(layer.state_dict())
    return mg.keep_factored(layer), other


def momentum_of(layer: Any, optimizer: torch.optim.Optimizer) -> Tensor:
    return optimizer.state[layer.weight].get("momentum_buffer", layer.weight.detach())


X = torch.linspace(-1, 1, 180, dtype=torch.float64).reshape(3, 60)
# Each runs a backward pass in which a factor of the weight's gradient is memory that the step will write.
USES: dict[str, Callable[[Any, torch.optim.Optimizer], Any]] = {
    "the upstream gradient is a part of the weight": lambda layer, _: layer(X).backward(layer.weight.detach()[:3]),
    "the input is a part of the weight": lambda layer, _: layer(layer.weight.detach()[5:9]).square().sum().backward(),
    "the input is a column of the weight": lambda layer, _: (
        layer(layer.weight.detach()[:, 1:3].t()).square().sum().backward()
    ),
    "the input is a part of the momentum": lambda layer, optimizer: (
        layer(momentum_of(layer, optimizer)[:4]).square().sum().backward()
    ),
    "the input is the bias": lambda layer, _: layer(layer.bias.detach()).square().sum().backward(),
}


@each_option
@each_form
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_factor_is_memory_that_the_step_writes(
    use: Callable[..., Any], make: Callable[..., torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    layer, other = layers()
    for one in (layer, other):
        optimizer = make(one.parameters(), lr=0.1, **options)
        for _ in range(3):
            optimizer.zero_grad()
            use(one, optimizer)
            optimizer.step()
    assert isinstance(layer.weight.grad, mg.FactoredGradient) and not layer.weight.grad.is_dense
    assert_same_weights(layer, other)


@each_form
def test_the_input_is_all_of_another_weight(make: Callable[..., torch.optim.Optimizer]) -> None:
    """Which the same step changes first. (7, 40) rows are smaller than a gradient of (200, 40)."""
    torch.manual_seed(0)
    model = nn.Sequential(mg.Dense(40, 7, dtype=torch.float64), mg.Dense(40, 200, dtype=torch.float64))
    other = nn.Sequential(nn.Linear(40, 7, dtype=torch.float64), nn.Linear(40, 200, dtype=torch.float64))
    other.load_state_dict(model.state_dict())
    for one in (model, other):
        layers: list[Any] = [*one]
        below, above = layers
        optimizer = make(mg.keep_factored(one).parameters(), lr=0.01, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            above(below.weight.detach()).square().sum().backward()
            below(torch.ones(1, 40, dtype=torch.float64)).sum().backward()
            optimizer.step()
    assert isinstance(model[1].weight.grad, mg.FactoredGradient)
    assert_same_weights(model, other)


@each_form
@pytest.mark.parametrize("where", ["above", "below"])
def test_the_detached_parameter_of_the_same_optimizer_is_the_input(
    make: Callable[..., torch.optim.Optimizer], where: str
) -> None:
    trained = []
    for one in (mg.keep_factored(net()), twin(net())):
        q = nn.Parameter(batch()[0])
        parameters = [q, *one.parameters()] if where == "above" else [*one.parameters(), q]
        optimizer = make(parameters, lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            (one(q.detach()).square().sum() + q.square().sum()).backward()
            optimizer.step()
        trained.append([q, *one.parameters()])
    for ours, theirs in zip(*trained, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("first", ["Adam", "SGD"])
def test_the_input_is_a_detached_parameter_of_another_optimizer(first: str) -> None:
    """A fused optimizer counts no change of what it writes: the factors would be wrong unseen."""
    trained = []
    for one in (mg.keep_factored(net()), twin(net())):
        q = nn.Parameter(batch()[0])
        optimizers = [getattr(torch.optim, first)([q], lr=0.1, fused=True), torch.optim.SGD(one.parameters(), lr=0.1)]
        for _ in range(3):
            one(q.detach()).square().sum().backward()
            q.square().sum().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        trained.append([q, *one.parameters()])
    for ours, theirs in zip(*trained, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@each_form
def test_the_same_memory_under_two_storages(make: Callable[..., torch.optim.Optimizer]) -> None:
    """As `torch.from_numpy` makes them: nothing in PyTorch knows that the input is a part of q, which is stepped first."""
    results = []
    for one in (mg.keep_factored(net()), twin(net())):
        memory = np.linspace(-1, 1, 200)
        q, x = nn.Parameter(torch.from_numpy(memory[50:])), torch.from_numpy(memory[:120]).view(3, 40)
        optimizer = make([q, *one.parameters()], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (one(x).square().sum() + q.square().sum()).backward()
            optimizer.step()
        results.append([q, *one.parameters()])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_closure_makes_the_gradients_inside_of_the_step() -> None:
    for make in FORMS.values():
        layer, other = layers()
        for one in (layer, other):
            optimizer = make(one.parameters(), lr=0.1)

            def closure(one: Any = one, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
                optimizer.zero_grad()
                one(X).backward(one.weight.detach()[:3])
                return torch.zeros(())

            optimizer.step(closure)  # type: ignore[arg-type]
            optimizer.step(closure=closure)  # type: ignore[arg-type]
        assert_same_weights(layer, other)


def test_added_by_hand_to_what_its_factors_are_a_part_of() -> None:
    w = torch.linspace(-1, 1, 48, dtype=torch.float64).view(6, 8)
    for write in (
        lambda target, g: target.add_(g, alpha=-0.5),
        lambda target, g: target.copy_(g),
        lambda target, g: torch._foreach_add_([target], [g]),
        lambda target, g: torch._fused_sgd_(
            [target], [g], [], weight_decay=0.0, momentum=0.0, lr=0.1, dampening=0.0, nesterov=False, maximize=False,
            is_first_step=False,
        ),
    ):  # fmt: skip
        ours, expected = w.clone(), w.clone()
        g = mg.FactoredGradient(ours[:2, :6], ours[1:3])
        write(expected, g.to_dense())
        write(ours, g)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


OTHERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    **{name: lambda ps, make=make: make(ps, lr=0.1) for name, make in FORMS.items()},
    "AdamW": torch.optim.AdamW,
    "AdamW fused": lambda ps: torch.optim.AdamW(ps, fused=True),
}


@pytest.mark.filterwarnings("ignore::manualgrad.FactorsLostWarning")
@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("closure", [False, True], ids=["", "closure"])
def test_a_step_that_cannot_be_taken_changes_nothing(make: Callable[..., torch.optim.Optimizer], closure: bool) -> None:
    first, second = (mg.Dense(40, 50, dtype=torch.float64) for _ in range(2))
    both = mg.keep_factored(nn.ModuleList([first, second]))
    optimizer = make(both.parameters())
    before = copy.deepcopy(both.state_dict())

    def run() -> Tensor:
        buffer = batch()[0]
        (first(batch()[0]).sum() + second(buffer).sum()).backward()
        buffer.zero_()
        return torch.zeros(())

    step = rf"{type(optimizer).__name__}\.step\(\)"
    sentence = (
        rf"^A factored gradient expected its factor `a` \(3, 40\) unchanged until its use \({step}\), got one changed"
    )
    with pytest.raises(RuntimeError, match=sentence):
        if closure:
            optimizer.step(run)  # type: ignore[arg-type]
        else:
            run()
            optimizer.step()
    torch.testing.assert_close(dict(both.state_dict()), dict(before), rtol=0, atol=0)
    assert not any(optimizer.state.values())


def test_a_slice_of_a_data_set_does_not_keep_the_data_set_alive() -> None:
    data = torch.randn(1000, 40, dtype=torch.float64)
    layer = mg.keep_factored(mg.Dense(40, 50, dtype=torch.float64))
    wide = torch.cat([layer(data[3:6]), layer(data[7:9])])
    wide[:, :25].sum().backward()  # the errors are parts of one tensor too
    gradient = layer.weight.grad
    assert isinstance(gradient, mg.FactoredGradient) and gradient.rank == 5
    for factors in gradient.content.factors:
        for x in (factors.delta, factors.a):
            assert x.untyped_storage().nbytes() <= x.nbytes
    expected = data[3:6].sum(0) + data[7:9].sum(0)
    data.zero_()  # and is nobody's concern any more
    torch.testing.assert_close(gradient.to_dense()[0], expected)


def test_optimizers_of_several_threads() -> None:
    pairs = [layers() for _ in range(4)]

    def run(one: Any) -> None:
        optimizer = torch.optim.SGD(one.parameters(), lr=0.01, momentum=0.9)
        for _ in range(40):
            optimizer.zero_grad()
            one(one.weight.detach()[:3]).square().sum().backward()
            optimizer.step()

    threads = [threading.Thread(target=run, args=(one,)) for pair in pairs for one in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for layer, other in pairs:
        assert_same_weights(layer, other)
