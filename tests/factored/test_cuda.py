"""Factored gradients on a CUDA device: memory, what SGD and loss scaling send, streams. Skipped where there is no device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

import manualgrad as mg


pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SIZES = [512, 1024, 1024, 256]


def pair(dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = mg.MLP(SIZES, "tanh", device="cuda", dtype=dtype)
    torch.manual_seed(0)
    return model, mg.revert(mg.MLP(SIZES, "tanh", device="cuda", dtype=dtype))


def batch(seed: int, dtype: torch.dtype = torch.float64, rows: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(seed)
    x, y = (torch.randn(rows, k, device="cuda", dtype=dtype, generator=generator) for k in (SIZES[0], SIZES[-1]))
    return x, y


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, clip: bool = False, dtype: torch.dtype = torch.float64
) -> None:
    for i in range(10):
        optimizer.zero_grad()
        for j in range(2):
            x, y = batch(10 * i + j, dtype)
            nn.functional.mse_loss(model(x), y).backward()
        if clip:
            clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()


def assert_same_weights(model: nn.Module, other: nn.Module, tolerance: float = 1e-12) -> None:
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}], ids=str
)
@pytest.mark.parametrize("form", [None, {}, {"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def test_trains_as_dense_gradients_do(form: dict[str, bool] | None, options: dict[str, Any], clip: bool) -> None:
    model, other = pair()
    if form is None:
        optimizer: torch.optim.Optimizer = mg.GradientDescent(model.parameters(), lr=0.1, **options)
    else:  # {}: SGD's own choice on CUDA, foreach
        optimizer = torch.optim.SGD(mg.keep_factored(model).parameters(), lr=0.1, **options, **form)
    train(model, optimizer, clip)
    train(other, torch.optim.SGD(other.parameters(), lr=0.1, **options), clip)
    assert isinstance(model[0].weight.grad, mg.FactoredGradient)
    assert_same_weights(model, other)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"weight_decay": 0.1}], ids=str)
def test_peak_memory_stays_below_a_quarter_of_the_dense_one(options: dict[str, Any]) -> None:
    peaks = []
    for one, make in zip(pair(torch.float32), (mg.GradientDescent, torch.optim.SGD), strict=True):
        optimizer = make(one.parameters(), lr=0.1, **options)
        train(one, optimizer, clip=True, dtype=torch.float32)  # momentum buffers, and the libraries' own workspaces
        optimizer.zero_grad()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        train(one, optimizer, clip=True, dtype=torch.float32)
        peaks.append(torch.cuda.max_memory_allocated() - held)
    assert peaks[0] < peaks[1] / 4


def test_clipping_and_the_step_do_not_wait_for_the_device() -> None:
    model, _ = pair(torch.float32)
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, clip=True, dtype=torch.float32)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(model, optimizer, clip=True, dtype=torch.float32)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("spoilt", [False, True], ids=["finite", "overflow"])
def test_grad_scaler_with_float16(spoilt: bool) -> None:
    model, _ = pair(torch.float32)
    before = model[0].weight.detach().clone()
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40 if spoilt else 1024.0)
    x, y = batch(0, torch.float32)
    with torch.autocast("cuda", dtype=torch.float16):
        loss = nn.functional.mse_loss(model(x), y)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(model[0].weight, before) == spoilt
    assert scaler.get_scale() == (2.0**39 if spoilt else 1024.0)


def test_a_step_on_another_stream_than_the_backward_pass() -> None:
    model, other = pair()
    side = torch.cuda.Stream()
    for one, make in ((model, mg.GradientDescent), (other, torch.optim.SGD)):
        optimizer = make(one.parameters(), lr=0.1)
        for i in range(5):
            x, y = batch(i)
            optimizer.zero_grad()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                nn.functional.mse_loss(one(x), y).backward()
            torch.cuda.current_stream().wait_stream(side)
            optimizer.step()
            torch.cuda.synchronize()  # before the factors' memory is given out again
    assert_same_weights(model, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("beta", [1.0, 0.9, 0.0])
def test_half_factors_are_summed_in_float32(dtype: torch.dtype, beta: float) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    delta, a = (torch.randn(64, k, device="cuda", generator=generator).to(dtype) for k in (512, 1024))
    target = torch.randn(512, 1024, device="cuda", generator=generator)
    truth = beta * target.double() - 0.1 * delta.double().t() @ a.double()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    mg.FactoredGradient(delta, a, torch.float32).add_to(target, alpha=-0.1, beta=beta)
    made = torch.cuda.max_memory_allocated() - held
    torch.testing.assert_close(target.double(), truth, rtol=1e-5, atol=1e-5)
    assert made < target.nbytes / 2


def test_a_module_is_moved_with_live_gradients() -> None:
    model, _ = pair()
    mg.keep_factored(model)
    x, y = batch(0)
    nn.functional.mse_loss(model(x), y).backward()
    dense = model[0].weight.grad.to_dense()
    model.cpu()
    gradient = model[0].weight.grad
    assert isinstance(gradient, mg.FactoredGradient) and gradient.device.type == "cpu" and not gradient.is_dense
    torch.testing.assert_close(gradient.to_dense(), dense.cpu(), rtol=1e-12, atol=1e-12)


def test_a_step_after_an_unchecked_clip_shows_an_overflow_of_the_product() -> None:
    weight = nn.Parameter(torch.zeros(33, 47, device="cuda"))
    weight.grad = mg.FactoredGradient(
        torch.full((2, 33), 1e30, device="cuda"), torch.full((2, 47), 1e30, device="cuda")
    )
    torch.cuda.set_sync_debug_mode("error")
    try:
        clip_grad_norm_([weight], 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    mg.GradientDescent([weight], lr=0.1).step()
    assert weight.isnan().any()
