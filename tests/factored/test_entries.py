"""What a factored gradient's entries are: its product, scaled and rounded as a dense gradient's would be, in every dtype."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg


pytestmark = pytest.mark.usefixtures("small_weights_too")

NARROW = [torch.float16, torch.bfloat16]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Factors that a narrow dtype cannot hold, of a product that it can; and such whose rounding would show.
FACTORS: dict[str, tuple[float, float]] = {
    "large times small": (1e6, 1e-6),
    "small times large": (1e-9, 1e8),
    "of no special size": (1.0, 1.0),
}
CASTS: dict[str, Callable[[Tensor, torch.dtype], Any]] = {
    "to": lambda g, dtype: g.to(dtype),
    "type": lambda g, dtype: g.type(dtype),
    "copy_ into a buffer": lambda g, dtype: torch.full(g.shape, torch.nan, dtype=dtype).copy_(g),
    "add_ into a buffer": lambda g, dtype: torch.zeros(g.shape, dtype=dtype).add_(g),
    "out of a product": lambda g, dtype: torch.mul(g, 1.0, out=torch.zeros(g.shape, dtype=dtype)),
    "copy_ into another gradient": lambda g, dtype: mg.FactoredGradient(
        torch.ones(1, g.size(0), dtype=dtype), torch.ones(1, g.size(1), dtype=dtype)
    ).copy_(g),
    "foreach copy": lambda g, dtype: torch._foreach_add([torch.zeros(g.shape, dtype=torch.float32)], [g])[0].to(dtype),
    "to_dense": lambda g, dtype: g.to_dense(dtype),
}


@pytest.mark.filterwarnings("ignore::manualgrad.FactorsLostWarning")
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("sizes", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_cast_rounds_the_product_and_not_the_factors(
    cast: Callable[[Any, torch.dtype], Any], sizes: tuple[float, float], dtype: torch.dtype, rows: int
) -> None:
    delta, a = random(rows, 33) * sizes[0], random(rows, 47, seed=1) * sizes[1]
    truth = (delta.double().t() @ a.double()).to(torch.float64)
    result = cast(mg.FactoredGradient(delta, a), dtype)
    value = result.to_dense() if isinstance(result, mg.FactoredGradient) else result
    assert value.dtype == dtype
    # float32's own rounding of the product comes before
    assert (
        (value.double() - truth).abs() <= 1.1 * torch.finfo(dtype).eps * truth.abs() + 1e-6 * truth.abs().max()
    ).all()


@pytest.mark.parametrize("dtype", NARROW)
def test_a_module_is_cast_between_backward_and_step(dtype: torch.dtype) -> None:
    layer, other = mg.Dense(60, 60), nn.Linear(60, 60)
    other.load_state_dict(layer.state_dict())
    x = random(3, 60) * 1e-6
    for one in (layer, other):
        optimizer = torch.optim.SGD(mg.keep_factored(one).parameters(), lr=0.5)
        (one(x) * 1e6).sum().backward()
        one.to(dtype)
        optimizer.step()
    torch.testing.assert_close(layer.weight, other.weight, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("scale", [1e-6, 2.0**-20, 3e5])
@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_scale_is_not_lost_in_half_precision(scale: float, dtype: torch.dtype, pairs: int, rows: int) -> None:
    """Loss scaling's: what is read of the gradient has it, to half precision and no worse."""
    factors = [
        ((random(rows, 33, seed=i) / scale**0.5).to(dtype), (random(rows, 47, seed=9 + i) / scale**0.5).to(dtype))
        for i in range(pairs)
    ]
    g: Any = mg.FactoredGradient(*factors[0]).mul_(scale)
    truth = scale * (factors[0][0].double().t() @ factors[0][1].double())
    if pairs == 2:  # each with a scale of its own
        g.add_(mg.FactoredGradient(*factors[1]).mul_(scale / 4))
        truth += scale / 4 * (factors[1][0].double().t() @ factors[1][1].double())
    eps = torch.finfo(dtype).eps

    def near(value: Tensor, expected: Tensor, ulps: float = 2) -> None:
        torch.testing.assert_close(
            value.double(), expected, rtol=ulps * eps, atol=ulps * eps * float(truth.abs().max())
        )

    near(g.delta.double().t() @ g.a.double(), truth)
    near(g.norm(), truth.norm())
    near(torch.cat([tile.clone() for _, tile in g.tiles()]), truth)
    near(torch.zeros(33, 47).add_(g), truth)
    norms = torch.cat([factors[0][0].double().norm(dim=1) * factors[0][1].double().norm(dim=1) * scale])
    torch.testing.assert_close(g.per_sample_norms()[:rows], norms, rtol=1e-6, atol=0)
    near(torch.zeros(33, 47, dtype=dtype).add_(g), truth)
    near(g.to_dense(), truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("number", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("before", [1e-6, 1e6, 1.0])
def test_a_0_dimensional_factor_of_any_dtype(before: float, number: torch.dtype, dtype: torch.dtype) -> None:
    g = mg.FactoredGradient(random(2, 33, dtype=dtype), random(2, 47, seed=1, dtype=dtype))
    expected = g.to_dense()
    for one in (g, expected):
        one.div_(before).mul_(torch.tensor(0.3, dtype=number))
        one.div_(torch.tensor(0.7, dtype=number)).mul_(torch.tensor(before, dtype=torch.float64))
    close: Any = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
    torch.testing.assert_close(g.to_dense(), expected, **close)
    target, other = torch.zeros(33, 47, dtype=dtype), torch.zeros(33, 47, dtype=dtype)
    target.add_(g, alpha=0.5), other.add_(expected, alpha=0.5)
    torch.testing.assert_close(target, other, **close)


@pytest.mark.filterwarnings("ignore::manualgrad.FactorsLostWarning")
@pytest.mark.parametrize(
    "number", [0.0, -0.0, torch.tensor(0.0), 1e-300, float("inf"), float("-inf"), float("nan")], ids=str
)
@pytest.mark.parametrize("how", ["div", "div_", "mul", "mul_"])
def test_numbers_that_leave_the_range(how: str, number: Any) -> None:
    delta, a = random(2, 33), random(2, 47, seed=1)
    delta[:, 3] = 0.0  # a row of zeros: times infinity it is NaN, while the others are infinite
    g = mg.FactoredGradient(delta, a)
    expected = getattr(g.to_dense(), how)(number)
    result = getattr(g, how)(number)
    torch.testing.assert_close(
        result.to_dense() if isinstance(result, mg.FactoredGradient) else result, expected, equal_nan=True
    )


@pytest.mark.filterwarnings("ignore::manualgrad.FactorsLostWarning")
def test_an_infinite_entry_of_the_gradients_own_dtype() -> None:
    """Loss scaling with half parameters looks for it in a copy in float32, or in a norm in float32."""
    delta, a = torch.full((1, 33), 300.0, dtype=torch.float16), torch.full((1, 47), 300.0, dtype=torch.float16)
    g = mg.FactoredGradient(delta, a)  # 90000 is beyond float16
    assert torch.zeros(33, 47).copy_(g).isinf().all() and g.float().to_dense().isinf().all()
    assert torch.linalg.vector_norm(g, dtype=torch.float32).isinf()
    wide = mg.FactoredGradient(torch.full((1, 33), 1e30), torch.full((1, 47), 1e30))
    assert wide.double().to_dense().isinf().all()


@pytest.mark.parametrize("dtype", NARROW)
def test_a_gradient_that_was_rounded_stays_rounded_where_it_is_widened_again(dtype: torch.dtype) -> None:
    g = mg.FactoredGradient(random(2, 33), random(2, 47, seed=1))
    torch.testing.assert_close(g.to(dtype).float().to_dense(), g.to_dense().to(dtype).float(), rtol=1e-6, atol=0)
    assert not g.is_dense
