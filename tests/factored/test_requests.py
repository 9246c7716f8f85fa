"""Who gets factored gradients: requests that live and die with an optimizer, marks, and inputs that rule them out."""

import copy
import gc
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.factored import requests
from tests.factored.nets import assert_same_weights, batch, net, twin


pytestmark = pytest.mark.usefixtures("small_weights_too")


@pytest.fixture
def swapped_parameters() -> Iterator[None]:
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


def backward(model: nn.Module, dtype: torch.dtype = torch.float64) -> None:
    x, y = batch(dtype=dtype)
    nn.functional.mse_loss(model(x), y).backward()


@pytest.mark.usefixtures("swapped_parameters")
@pytest.mark.parametrize("live", [False, True], ids=["without gradients", "with gradients"])
def test_a_conversion_that_swaps_parameters(live: bool) -> None:
    model = net(torch.float32)
    other = twin(model)
    for one, make in ((model, mg.GradientDescent), (other, torch.optim.SGD)):
        optimizer = make(one.parameters(), lr=0.1)
        if live:
            backward(one, torch.float32)
        one.double()
        backward(one)
        optimizer.step()
    gradient = model[0].weight.grad
    assert isinstance(gradient, mg.FactoredGradient) and gradient.dtype == torch.float64
    assert_same_weights(model, other, 1e-6 if live else 1e-12)


@pytest.mark.usefixtures("swapped_parameters")
def test_a_mark_is_left_behind_where_parameters_are_swapped() -> None:
    model = mg.keep_factored(net(torch.float32)).double()
    backward(model)
    assert type(model[0].weight.grad) is Tensor
    mg.keep_factored(model)
    model.zero_grad()
    backward(model)
    assert isinstance(model[0].weight.grad, mg.FactoredGradient)


def test_a_mark_is_pickled_and_not_copied() -> None:
    model = mg.keep_factored(net())
    assert requests.is_wanted(pickle.loads(pickle.dumps(model))[0].weight)
    assert not requests.is_wanted(copy.deepcopy(model)[0].weight)


def test_requests_of_two_optimizers_end_one_by_one() -> None:
    model = net()
    first, second = (mg.GradientDescent(model.parameters(), lr=0.1) for _ in range(2))
    first.add_param_group({"params": [nn.Parameter(torch.zeros(2, 2))]})  # asks anew
    del first
    assert requests.is_wanted(model[0].weight)
    restored = copy.deepcopy(second)  # asks for the copies of the parameters
    del second
    assert not requests.is_wanted(model[0].weight)
    assert all(requests.is_wanted(w) for w in restored.param_groups[0]["params"])


def _step(optimizer: torch.optim.Optimizer, _: Tensor) -> None:
    optimizer.step()


def test_nothing_is_left_of_an_optimizer_that_its_parameters_refer_to() -> None:
    gc.collect()
    assert not requests.is_wanted(torch.zeros(()))  # a look at the table strikes out what was withdrawn
    before = dict(requests._requests)
    model = net()
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    model[0].weight.register_hook(partial(_step, optimizer))
    assert requests._requests != before
    del model, optimizer
    gc.collect()
    assert not requests.is_wanted(torch.zeros(()))
    assert requests._requests == before


def test_a_table_that_many_threads_change() -> None:
    """Optimizers that come and go over the same weights, some by the garbage collector in the middle of another's entry."""
    model = net()
    assert not requests.is_wanted(model[0].weight)
    before = dict(requests._requests)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def come_and_go() -> None:
        for _ in range(150):
            optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
            optimizer.itself = optimizer  # type: ignore[attr-defined]  # only the collector finds it
            gc.collect(0)

    keeper = mg.GradientDescent(model.parameters(), lr=0.1)
    try:
        threads = [threading.Thread(target=come_and_go) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    gc.collect()
    assert requests.is_wanted(model[0].weight)
    assert {requests._requests[id(p)] for p in model.parameters()} == {1}
    del keeper
    assert not requests.is_wanted(model[0].weight)
    assert requests._requests == before


def test_keep_factored_false_stops_asking() -> None:
    model = mg.keep_factored(net())
    backward(model)
    assert isinstance(model[0].weight.grad, mg.FactoredGradient)
    assert mg.keep_factored(model, False) is model and not requests.is_wanted(model[0].weight)
    mg.keep_factored(model, False)  # which nobody has asked for
    model.zero_grad()
    backward(model)
    assert type(model[0].weight.grad) is Tensor
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    mg.keep_factored(model, False)
    assert requests.is_wanted(model[0].weight)  # by an optimizer that asks for itself
    del optimizer


PARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda p: p,
    "rows": lambda p: p[:3],
    "columns, transposed": lambda p: p[:, :3].t(),
    "rows of a view": lambda p: p.view(2, 20, 40)[1, 3:5],
    "one row, expanded": lambda p: p[0].expand(3, 40),
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "GradientDescent": mg.GradientDescent,
    "SGD loop": lambda groups, **options: torch.optim.SGD(groups, foreach=False, **options),
    "SGD foreach": lambda groups, **options: torch.optim.SGD(groups, foreach=True, **options),
    "SGD fused": lambda groups, **options: torch.optim.SGD(groups, fused=True, **options),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_a_part_of_a_parameter_as_input_is_stepped_first(
    part: Callable[[Tensor], Tensor], make: Callable[..., torch.optim.Optimizer]
) -> None:
    """A fused optimizer does not count its writes: factors that are a part of what it has changed would be wrong unseen."""
    trained = []
    for one in (mg.keep_factored(net()), twin(net())):
        below = nn.Parameter(torch.linspace(-1, 1, 1600, dtype=torch.float64).view(40, 40))
        for groups in ([below, *one.parameters()], [{"params": [below]}, {"params": list(one.parameters())}]):
            optimizer = make(groups, lr=0.1, momentum=0.9)
            for _ in range(2):
                optimizer.zero_grad()
                one(part(below)).square().sum().backward()
                optimizer.step()
        trained.append([below, *one.parameters()])
    for ours, theirs in zip(*trained, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


INPUTS: dict[str, Callable[[], tuple[nn.Module, Callable[[nn.Module], Tensor]]]] = {
    "of an in-place operation": lambda: (nn.Identity(), lambda _: batch()[0].clone().mul_(2).clamp_(min=0)),
    "expanded": lambda: (nn.Identity(), lambda _: batch()[0][:1].expand(4, 40)),
    "of an embedding": lambda: (nn.Embedding(9, 40).double(), lambda below: below(torch.tensor([1, 2, 2]))),
    "of a batch norm": lambda: (nn.BatchNorm1d(40).double(), lambda below: below(batch()[0])),
}


@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
def test_an_input_that_is_new_or_unchanged_keeps_its_factors(make: Callable[[], Any]) -> None:
    model = net()
    other = twin(model)
    below, use = make()
    for one, part, optimizer_type in (
        (model, below, mg.GradientDescent),
        (other, copy.deepcopy(below), torch.optim.SGD),
    ):
        optimizer = optimizer_type([*part.parameters(), *one.parameters()], lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            one(use(part)).square().sum().backward()
            optimizer.step()
    assert isinstance(model[0].weight.grad, mg.FactoredGradient) and not model[0].weight.grad.is_dense
    assert_same_weights(model, other)


def test_what_an_expanded_input_was_made_of_is_guarded() -> None:
    model = net()
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    row = batch(1)[0]
    model(row.expand(4, 40)).square().sum().backward()
    row.zero_()
    with pytest.raises(RuntimeError, match=r"expected its factor `a` \(4, 40\) unchanged until its use"):
        optimizer.step()
