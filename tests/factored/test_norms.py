"""Norms, clipping and loss scaling of factored gradients, against dense gradients and a float64 truth."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm

import manualgrad as mg
from manualgrad.factored.norms import two_norm_in_float32


pytestmark = pytest.mark.usefixtures("small_weights_too")


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def parameter(gradient: Tensor) -> nn.Parameter:
    p = nn.Parameter(torch.zeros(gradient.shape, dtype=gradient.dtype))
    p.grad = gradient
    return p


@pytest.mark.parametrize("order", [0, 1, 2, 3, float("inf"), -float("inf")])
@pytest.mark.parametrize("rows", [1, 3, 300])
def test_norms_of_every_order(rows: int, order: float) -> None:
    g = mg.FactoredGradient(random(rows, 33), random(rows, 47, seed=1))
    expected = torch.linalg.vector_norm(g.to_dense(), order)
    for norm in (torch.linalg.vector_norm(g, order), g.norm(order)):
        torch.testing.assert_close(norm, expected, rtol=1e-12, atol=0)
    both = [g, torch.ones(3, dtype=torch.float64)]
    total = get_total_norm([g.to_dense(), both[1]], order)
    torch.testing.assert_close(get_total_norm(both, order), total, rtol=1e-12, atol=0)
    assert g.is_dense == (rows == 300 and order == 2)  # the factors are larger than their product


def test_norm_where_samples_cancel_ten_thousandfold() -> None:
    delta, a = random(2, 300, dtype=torch.float32), random(1, 200, seed=1, dtype=torch.float32).repeat(2, 1)
    delta[1] = -delta[0] * (1 + 1e-4)
    truth = torch.linalg.vector_norm(delta.double().t() @ a.double())
    norm = torch.linalg.vector_norm(mg.FactoredGradient(delta, a))
    assert float(torch.linalg.vector_norm(delta[0]) * torch.linalg.vector_norm(a[0]) / truth) > 9000
    torch.testing.assert_close(norm.double(), truth, rtol=1e-5, atol=0)


@pytest.mark.parametrize("rows", [10, 40, 200])
@pytest.mark.parametrize("kind", ["independent", "of one sign", "tiny", "huge", "cancelling", "cancelling by means"])
def test_norms_are_exact_whichever_way_they_are_taken(rows: int, kind: str) -> None:
    """By float64 Gram matrices, float32 ones where samples do not cancel, or from the product: by the number of rows."""
    delta, a = random(rows, 800, dtype=torch.float32), random(rows, 900, seed=1, dtype=torch.float32)
    if kind == "of one sign":
        delta, a = delta.abs(), a.abs()
    elif kind in ("tiny", "huge"):
        delta *= 1e-22 if kind == "tiny" else 1e14
    elif kind == "cancelling":  # in pairs, ten-thousandfold
        a[1::2], delta[1::2] = a[::2], -delta[::2] * (1 + 1e-4)
    elif kind == "cancelling by means":  # as behind a batch norm: one input, and errors whose sum is nearly zero
        a[:] = a[0]
        delta += 1e-4 * delta[0] - delta.mean(0)
    g = mg.FactoredGradient(delta, a)
    truth = torch.linalg.vector_norm(delta.double().t() @ a.double())
    single = two_norm_in_float32(g)
    assert (single is not None) == (rows > 32 and kind in ("independent", "of one sign", "huge"))
    torch.testing.assert_close(torch.linalg.vector_norm(g).double(), truth, rtol=1e-5, atol=0)
    assert g.is_dense == (rows == 200)


@pytest.mark.parametrize("limit", [0.1, 1e6])
def test_clipping_by_norm_and_by_value(limit: float) -> None:
    for clip in (clip_grad_norm_, clip_grad_value_):
        g = mg.FactoredGradient(random(3, 33), random(3, 47, seed=1))
        dense = g.to_dense()
        clip([parameter(g), parameter(random(5, 5))], limit)
        clip([parameter(dense), parameter(random(5, 5))], limit)
        torch.testing.assert_close(g.to_dense(), dense, rtol=1e-12, atol=1e-14)
        assert g.is_dense == (clip is clip_grad_value_)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_error_if_nonfinite(value: float) -> None:
    delta = random(3, 33)
    delta[1, 2] = value
    with pytest.raises(RuntimeError, match="The total norm of order 2.0 for gradients from `parameters` is non-finite"):
        clip_grad_norm_([parameter(mg.FactoredGradient(delta, random(3, 47)))], 1.0, error_if_nonfinite=True)


@pytest.mark.parametrize("shape", [(6, 60), (6, 4, 60), (3, 2, 4, 60), (60,)], ids=str)
def test_per_sample_norms_against_vmap(shape: tuple[int, ...]) -> None:
    layer = mg.keep_factored(mg.Dense(60, 70, activation="tanh", dtype=torch.float64))
    layer(x := random(*shape)).square().sum().backward()
    samples = x if x.dim() > 1 else x.unsqueeze(0)

    def loss(weight: Tensor, sample: Tensor) -> Tensor:
        return torch.tanh(sample @ weight.t() + layer.bias).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(layer.weight.detach(), samples)
    gradient = layer.weight.grad
    assert isinstance(gradient, mg.FactoredGradient)
    torch.testing.assert_close(gradient.per_sample_norms(), each.flatten(1).norm(dim=1).detach(), rtol=1e-10, atol=0)


def spoil_delta(value: float) -> Callable[[Tensor, Tensor], Any]:
    return lambda delta, a: delta[1, 2].fill_(value)


SPOILT = {
    "inf": spoil_delta(float("inf")),
    "nan": spoil_delta(float("nan")),
    "overflow of the product alone": lambda delta, a: (delta[1].fill_(1e30), a[1].fill_(1e30)),
}


@pytest.mark.parametrize("spoil", [None, *SPOILT.values()], ids=["finite", *SPOILT])
def test_grad_scaler_skips_a_step_that_overflows(spoil: Callable[[Tensor, Tensor], Any] | None) -> None:
    layer = mg.Dense(20, 30, bias=False)
    before = layer.weight.detach().clone()
    optimizer = mg.GradientDescent(layer.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss = layer(random(3, 20, dtype=torch.float32)).square().sum()
    scaler.scale(loss).backward()
    expected = torch.autograd.grad(
        nn.functional.linear(random(3, 20, dtype=torch.float32), w := before.clone().requires_grad_()).square().sum(), w
    )[0]
    gradient = layer.weight.grad
    assert isinstance(gradient, mg.FactoredGradient)
    if spoil:
        delta, a = gradient.delta.clone(), gradient.a.clone()
        spoil(delta, a)
        layer.weight.grad = mg.FactoredGradient(delta, a)
    scaler.unscale_(optimizer)
    if not spoil:
        torch.testing.assert_close(gradient.to_dense(), expected)
    clip_grad_norm_(layer.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == (512.0 if spoil else 1024.0)
    assert torch.equal(layer.weight, before) == bool(spoil)
