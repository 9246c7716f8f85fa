"""GradientDescent against torch.optim.SGD: single parameters with prescribed gradients, param groups, state, errors."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import SGD
from torch.testing._internal.common_optimizers import optim_error_inputs_func_sgd

import manualgrad as mg
from tests.optim.configurations import CONFIGURATIONS, Race, each_configuration


def pair(value: Tensor, options: dict[str, Any], steps: list[Tensor | None]) -> tuple[Tensor, Tensor]:
    """`value` after those gradients, ours and SGD's."""
    results = []
    for kind in (mg.GradientDescent, SGD):
        p = Parameter(value.clone())
        optimizer = kind([p], **copy.deepcopy(options))
        for gradient in steps:
            p.grad = None if gradient is None else gradient.clone()
            optimizer.step()
        results.append(p.detach())
    return results[0], results[1]


@each_configuration
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3, 4), (0,), (3, 0)], ids=str)
def test_any_shape(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    gradients: list[Tensor | None] = [torch.randn(shape, dtype=torch.float64) for _ in range(4)]
    torch.testing.assert_close(
        *pair(torch.randn(shape, dtype=torch.float64), options, gradients), rtol=1e-13, atol=1e-15
    )


@each_configuration
def test_complex_parameters(options: dict[str, Any]) -> None:
    gradients: list[Tensor | None] = [torch.randn(3, 2, dtype=torch.complex128) for _ in range(5)]
    ours, theirs = pair(torch.randn(3, 2, dtype=torch.complex128), options, gradients)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("options", [o for o in CONFIGURATIONS.values() if "weight_decay" not in o], ids=str)
def test_sparse_gradients(options: dict[str, Any]) -> None:
    gradients: list[Tensor | None] = [
        torch.sparse_coo_tensor(torch.tensor([[0, 2, 2]]), torch.randn(3, 2).double(), (4, 2), check_invariants=True)
        for _ in range(5)
    ]
    with torch.sparse.check_sparse_tensor_invariants():
        ours, theirs = pair(torch.randn(4, 2, dtype=torch.float64), options, gradients)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15)


def test_an_embedding_with_sparse_gradients() -> None:
    table = nn.Embedding(10, 3, sparse=True)
    before = table.weight.detach().clone()
    optimizer = mg.GradientDescent(table.parameters(), lr=0.5)
    with torch.sparse.check_sparse_tensor_invariants():
        table(torch.tensor([1, 1, 4])).sum().backward()
        optimizer.step()
    assert torch.equal(
        (table.weight.detach() - before)[[1, 4, 0]].round(decimals=4), torch.tensor([[-1.0], [-0.5], [0]]).expand(3, 3)
    )


@each_configuration
def test_missing_gradients_are_skipped(options: dict[str, Any]) -> None:
    """Also one that is missing for a while: its momentum waits."""
    g = torch.randn(3, dtype=torch.float64)
    ours, theirs = pair(torch.randn(3, dtype=torch.float64), options, [None, g, None, None, 2 * g])
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15)
    p = Parameter(torch.ones(3))
    optimizer = mg.GradientDescent([p], **copy.deepcopy(options))
    optimizer.step()
    assert torch.equal(p, torch.ones(3)) and not optimizer.state


@each_configuration
def test_the_gradient_is_never_changed(options: dict[str, Any]) -> None:
    p = Parameter(torch.randn(3, 2))
    optimizer = mg.GradientDescent([p], **copy.deepcopy(options))
    for _ in range(3):
        gradient = torch.randn(3, 2)
        p.grad = gradient
        before = gradient.clone()
        optimizer.step()
        assert p.grad is gradient and torch.equal(gradient, before) and gradient._version == 0
    for state in optimizer.state.values():
        assert state["momentum_buffer"].data_ptr() != gradient.data_ptr()


@each_configuration
def test_non_contiguous_parameters_and_gradients(options: dict[str, Any]) -> None:
    whole = torch.randn(4, 6, dtype=torch.float64)
    gradients: list[Tensor | None] = [
        torch.randn(6, 4, dtype=torch.float64).t()[:, ::2],
        torch.randn(1, 1).double().expand(4, 3),
    ]
    ours, theirs = pair(whole[:, ::2], options, gradients)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15)


# The contract


@each_configuration
def test_a_tensor_learning_rate_can_be_changed_in_place(options: dict[str, Any]) -> None:
    results = []
    for kind in (mg.GradientDescent, SGD):
        lr = torch.tensor(0.1, dtype=torch.float64)
        p = Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = kind([p], **{**options, "lr": lr})
        for _ in range(4):
            p.grad = p.detach() ** 2
            optimizer.step()
            lr.mul_(0.5)
        assert optimizer.param_groups[0]["lr"] is lr
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    "lr", [torch.tensor(0.1), torch.tensor([0.1]), torch.tensor(0.1, dtype=torch.float64)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("shape", [(), (3,)], ids=str)
def test_tensor_learning_rates_of_any_kind(lr: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if lr.dim() == 1 and torch.__version__ < "2.7":
        pytest.skip("torch.optim.SGD does not take a learning rate of shape (1,) in torch 2.6")
    ours, theirs = pair(torch.ones(shape, dtype=dtype), {"lr": lr}, [torch.ones(shape, dtype=dtype)] * 2)
    assert torch.equal(ours, theirs)


def test_param_groups() -> None:
    results = []
    for kind in (mg.GradientDescent, SGD):
        p, q, r = (Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(3))
        groups: list[dict[str, Any]] = [
            {"params": [p]},
            {"params": q, "lr": 1e-2, "momentum": 0.9, "nesterov": True},
        ]
        optimizer = kind(groups, lr=1e-1)
        optimizer.add_param_group({"params": [r], "weight_decay": 0.5, "maximize": True})
        for _ in range(5):
            for w in (p, q, r):
                w.grad = w.detach() ** 2
            optimizer.step()
        results.append(torch.cat([p, q, r]).detach())
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-15)


def test_a_learning_rate_in_every_group_is_enough() -> None:
    p, q = Parameter(torch.ones(1)), Parameter(torch.ones(1))
    optimizer = mg.GradientDescent([{"params": [p], "lr": 1.0}, {"params": [q], "lr": 2.0}])
    p.grad = q.grad = torch.ones(1)
    optimizer.step()
    assert (p.item(), q.item()) == (0.0, -1.0)


def test_named_parameters() -> None:
    model = mg.MLP([3, 2])
    optimizer = mg.GradientDescent(model.named_parameters(), lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias"]
    other = SGD(model.named_parameters(), lr=0.2)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["param_names"] == ["0.weight", "0.bias"]
    assert other.param_groups[0]["lr"] == 0.1


def test_step_hooks() -> None:
    p = Parameter(torch.ones(1))
    seen: list[Any] = []
    optimizer = mg.GradientDescent([p], lr=1.0)
    optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append(("before", p.item())))
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(("after", p.item())))
    optimizer.register_state_dict_post_hook(lambda o, state: seen.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda o, state: seen.append("loading"))
    p.grad = torch.ones(1)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [("before", 1.0), ("after", 0.0), "saved", "loading"]


def test_zero_grad() -> None:
    p = Parameter(torch.ones(1))
    optimizer = mg.GradientDescent([p], lr=1.0, momentum=0.9, weight_decay=0.1)
    p.grad = torch.ones(1)
    optimizer.zero_grad(set_to_none=False)
    assert p.grad is not None and p.grad.item() == 0
    optimizer.zero_grad()
    assert p.grad is None


@each_configuration
def test_state_is_only_the_momentum(options: dict[str, Any]) -> None:
    race = Race(options)
    race.step()
    ours = race.optimizers[0].state
    if options.get("momentum", 0) == 0:
        assert all(not state or state["momentum_buffer"] is None for state in ours.values())
    else:
        assert {tuple(state) for state in ours.values()} == {("momentum_buffer",)}
        assert not any(state["momentum_buffer"].requires_grad for state in ours.values())


def test_state_dicts_of_older_releases_load() -> None:
    p = Parameter(torch.ones(2))
    optimizer = mg.GradientDescent([p], lr=1.0)
    old = {"state": {}, "param_groups": [{"lr": 0.5, "momentum": 0, "dampening": 0, "weight_decay": 0, "params": [0]}]}
    optimizer.load_state_dict(old)
    p.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(p, torch.full((2,), 0.5))


def test_loaded_momentum_takes_the_parameter_s_dtype() -> None:
    p, q = Parameter(torch.ones(2)), Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = mg.GradientDescent([p], lr=1.0, momentum=0.9)
    p.grad = torch.ones(2)
    optimizer.step()
    other = mg.GradientDescent([q], lr=1.0, momentum=0.9)
    other.load_state_dict(optimizer.state_dict())
    assert other.state[q]["momentum_buffer"].dtype == torch.float64


def test_clipping_scaling_and_averaging_work_as_before() -> None:
    race = Race({"lr": 0.1, "momentum": 0.9})
    averages = [torch.optim.swa_utils.AveragedModel(model) for model in race.models]
    for _ in range(5):
        x, y = race.batch()
        for model, optimizer, average in zip(race.models, race.optimizers, averages, strict=True):
            optimizer.zero_grad()
            (100 * nn.functional.mse_loss(model(x), y)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            nn.utils.clip_grad_value_(model.parameters(), 0.3)
            optimizer.step()
            average.update_parameters(model)
    race.assert_even()


# Errors


@pytest.fixture
def p() -> Iterator[Parameter]:
    parameter = Parameter(torch.ones(2))
    yield parameter
    assert torch.equal(parameter, torch.ones(2))


ERRORS = optim_error_inputs_func_sgd("cpu", torch.float32)


@pytest.mark.parametrize("case", ERRORS, ids=[case.optimizer_error_input.desc for case in ERRORS])
def test_pytorch_s_own_error_cases(case: Any, p: Parameter) -> None:
    example = case.optimizer_error_input
    params = [p] if example.params is None else example.params
    if issubclass(case.error_type, Warning):
        with pytest.warns(case.error_type, match=case.error_regex):
            mg.GradientDescent(params, **{"lr": 0.1, **example.kwargs})
    else:
        with pytest.raises(case.error_type, match=case.error_regex):
            mg.GradientDescent(params, **{"lr": 0.1, **example.kwargs})


def test_a_state_dict_of_another_shape_changes_nothing() -> None:
    p = Parameter(torch.ones(2))
    optimizer = mg.GradientDescent([p], lr=0.1)
    state = SGD([Parameter(torch.ones(2)), Parameter(torch.ones(2))], lr=0.3).state_dict()
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.1
