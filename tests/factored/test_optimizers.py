"""Every optimizer of `torch.optim` on factored gradients: the weights that dense ones give, and the factors are kept."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.testing._internal.common_optimizers import optim_db

import manualgrad as mg
from tests.factored.nets import assert_same_weights, batch, net, train, twin
from tests.factored.test_training import WeightSized


pytestmark = pytest.mark.usefixtures("small_weights_too")

OPTIMIZERS: list[Any] = optim_db  # whose classes the type checker takes for instances
FORMS = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
NOT_HERE = {"LBFGS": "below", "SparseAdam": "wants sparse gradients"}
CASES = [
    pytest.param(info.optim_cls, {**case.kwargs, **form}, id=f"{info.optim_cls.__name__}, {case.desc}, {name}")
    for info in OPTIMIZERS
    if info.optim_cls.__name__ not in NOT_HERE
    for case in info.optim_inputs_func(device="cpu")
    for name, form in (FORMS.items() if info.supported_impls else [("loop", {})])  # Muon has one form
    if name in ("loop", *info.supported_impls)
]
X = [torch.randn(3, 40, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(5)]
UPSTREAM = torch.randn(3, 50, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def fifty_steps(layer: nn.Module, make: Any, options: dict[str, Any]) -> None:
    """In turn: a plain step; one that is scaled; and one that is scaled, accumulated over three batches and clipped."""
    parameters = [p for p in layer.parameters() if p.dim() == 2 or make.__name__ != "Muon"]
    optimizer = make(parameters, **copy.deepcopy(options))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for i in range(50):
        optimizer.zero_grad()
        for j in range(1 if i % 3 < 2 else 3):
            loss = torch.tanh(layer(X[(i + j) % 5])).mul(UPSTREAM).sum()
            (scaler.scale(loss) if i % 3 else loss).backward()
        if i % 3 == 0:
            optimizer.step()
            continue
        if i % 3 == 2:  # else a fused kernel unscales them
            scaler.unscale_(optimizer)
            clip_grad_norm_(parameters, 0.1)
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize(("make", "options"), CASES)
def test_trains_as_on_dense_gradients(make: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = mg.keep_factored(mg.Dense(40, 50, dtype=torch.float64))
    other = nn.Linear(40, 50, dtype=torch.float64)
    other.load_state_dict(layer.state_dict())
    with mg.forbid_densify():
        fifty_steps(layer, make, options)
    gradient = layer.weight.grad
    assert isinstance(gradient, mg.FactoredGradient) and not gradient.is_dense
    fifty_steps(other, make, options)
    assert_same_weights(layer, other)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_fused_step_makes_nothing_of_the_weights_size(make: Any, micro_batches: int) -> None:
    model = mg.keep_factored(net())
    optimizer = make(model.parameters(), fused=True)
    train(model, optimizer, steps=1)  # which makes the state
    states = [x for state in optimizer.state.values() for x in state.values()]
    losses = [model(batch(3, seed=j)[0]).square().mean() for j in range(micro_batches)]
    optimizer.zero_grad()
    with WeightSized([*model.parameters(), *states]) as count:
        for loss in losses:
            loss.backward()
        clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    assert count.made == []


def test_lbfgs_reads_a_flat_gradient_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manualgrad.factored.densify._warned", set())
    model = mg.keep_factored(net())
    other = twin(model)
    x, y = batch()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for one in (model, other):
            optimizer = torch.optim.LBFGS(one.parameters(), lr=0.1)

            def closure(one: nn.Module = one, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(one(x), y)
                loss.backward()
                return loss

            for _ in range(3):
                optimizer.step(closure)
    assert [str(w.message).split(" needs ")[0] for w in caught] == ["LBFGS"]
    assert_same_weights(model, other)
