"""PyTorch still answers the private questions, and answers them rightly."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from manualgrad.autograd import torch_state as state


def test_transforms() -> None:
    seen = []

    def f(x: torch.Tensor) -> torch.Tensor:
        seen.append(state.are_transforms_active())
        return x.square()

    f(torch.ones(()))
    grad(f)(torch.ones(()))
    vmap(f)(torch.ones(2))
    jvp(f, (torch.ones(()),), (torch.ones(()),))
    assert seen == [False, True, True, True] and not state.are_transforms_active()


def test_batched_gradients() -> None:
    seen = []
    x = torch.ones(2, requires_grad=True)
    y = 2 * x
    y.register_hook(lambda gradient: seen.append(state.is_batched_gradient(gradient)))
    torch.autograd.grad(y, x, torch.ones(2), retain_graph=True)
    torch.autograd.grad(y, x, torch.eye(2), is_grads_batched=True)
    assert seen == [False, True]


def test_forward_mode() -> None:
    assert not state.is_forward_mode_active() and state.forward_modes() == 0
    with forward_ad.dual_level():
        assert state.is_forward_mode_active() and state.forward_modes() == 0  # counts those of torch.func alone
    seen = []

    def f(x: torch.Tensor) -> torch.Tensor:
        seen.append((state.is_forward_mode_active(), state.forward_modes()))
        return x.square()

    def tangent(x: torch.Tensor) -> torch.Tensor:
        return jvp(f, (x,), (torch.ones(()),))[1]

    tangent(torch.ones(()))
    jvp(tangent, (torch.ones(()),), (torch.ones(()),))
    grad(tangent)(torch.ones(()))
    assert seen == [(True, 1), (True, 2), (True, 1)]
    assert not state.is_forward_mode_active()


def test_autocast() -> None:
    assert not state.is_any_autocast_enabled()
    with torch.autocast("cpu"):
        assert state.is_any_autocast_enabled()
    assert not state.is_any_autocast_enabled()


def test_tracing() -> None:
    seen = [state.tracing_state()]

    def f(x: torch.Tensor) -> torch.Tensor:
        seen.append(state.tracing_state())
        assert torch.jit.is_tracing()
        return 2 * x

    torch.jit.trace(f, torch.ones(2), check_trace=False)
    assert seen[0] is None and seen[1] is not None and state.tracing_state() is None


def test_inference_mode() -> None:
    with state.InferenceMode(True):
        assert torch.is_inference_mode_enabled() and torch.ones(1).is_inference()
    assert not torch.is_inference_mode_enabled()


def test_the_graph_executor_of_torchscript() -> None:
    ask, say = state.graph_executor()
    before = ask()
    try:
        say(False)
        assert ask() is False
        with torch.jit.optimized_execution(True):  # the public form is made of the same
            assert ask() is True
        assert ask() is False
    finally:
        say(before)


def test_hooks_of_modules() -> None:
    layer = nn.Linear(2, 2)
    tables = state.hooks_of_module(layer)
    assert not any(tables)
    registers: tuple[Any, ...] = (
        layer.register_forward_hook,
        layer.register_forward_pre_hook,
        layer.register_full_backward_hook,
        layer.register_full_backward_pre_hook,
    )
    for i, register in enumerate(registers):
        handle = register(lambda *_: None)
        assert [bool(table) for table in tables] == [j == i for j in range(4)]
        handle.remove()


def test_hooks_of_parameters() -> None:
    p = nn.Parameter(torch.ones(1))
    for register in (p.register_hook, p.register_post_accumulate_grad_hook):
        assert not state.has_hooks([p])
        handle = register(lambda *_: None)
        assert state.has_hooks([p])
        handle.remove()
    assert not state.has_hooks([p])


def test_hooks_of_optimizers() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    tables = state.hooks_of_optimizer(optimizer)
    registers: tuple[Any, ...] = (
        optimizer.register_step_pre_hook,
        optimizer.register_step_post_hook,
        register_optimizer_step_pre_hook,
        register_optimizer_step_post_hook,
    )
    for i, register in enumerate(registers):
        handle = register(lambda *_: None)
        assert state.is_hooked(tables), i
        handle.remove()
        assert not state.is_hooked(tables), "the package's own hook does not count"


def test_a_noted_step_satisfies_a_scheduler() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    state.note_step(optimizer)
    scheduler.step()


def test_pointers_are_refused() -> None:
    x = torch.ones(2)
    assert x.data_ptr() != 0
    state.refuse_pointers(x)
    readers: list[Any] = [torch.Tensor.data_ptr, torch.utils.dlpack.to_dlpack]
    for read in readers:
        with pytest.raises(RuntimeError):
            read(x)
