"""The three products in their fast forms: the plain form's values, taken where they should be, with no copy of the weight."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from manualgrad.matrix_products import _views, add_product, times_weight, times_weight_transposed, views_made_once


class Operations(TorchDispatchMode):
    """Notes each operation, and the entries of the largest new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        old = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in old:
            self.largest = max(self.largest, result.numel())
        return result


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def assert_close(value: Tensor, truth: Tensor) -> None:
    """To a few roundings of float32 in a sum of a thousand terms."""
    torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=1e-5 * float(truth.abs().max()))


# (m, n), rows, whether the weight goes in as blocks
SHAPES = [
    ((512, 1024), 1, True),
    ((1024, 512), 3, True),
    ((512, 512), 64, True),
    ((2048, 4096), 7, True),
    ((512, 512), 1, False),  # too small for one row
    ((512, 512), 65, False),  # for so many
    ((511, 513), 5, False),  # no equal blocks
    ((256, 512), 5, False),  # too small
]


@pytest.mark.parametrize(("shape", "rows", "in_blocks"), SHAPES, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
@torch.no_grad()
def test_times_weight_transposed(shape: tuple[int, int], rows: int, in_blocks: bool, with_bias: bool) -> None:
    weight, a, bias = random(*shape), random(rows, shape[1]), random(shape[0]) if with_bias else None
    with Operations() as seen:
        z = times_weight_transposed(a, weight, bias)
    assert bool(seen.names & {"bmm", "baddbmm"}) == in_blocks and seen.largest < weight.numel()
    assert z.is_contiguous()
    truth = a.double() @ weight.double().t()
    assert_close(z, truth if bias is None else truth + bias)


@pytest.mark.parametrize(("shape", "rows", "in_blocks"), SHAPES, ids=str)
@torch.no_grad()
def test_times_weight(shape: tuple[int, int], rows: int, in_blocks: bool) -> None:
    weight, delta = random(*shape), random(rows, shape[0])
    with Operations() as seen:
        product = times_weight(delta, weight)
    assert ("bmm" in seen.names) == in_blocks and seen.largest < weight.numel()
    assert product.is_contiguous()
    assert_close(product, delta.double() @ weight.double())


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.0])
@pytest.mark.parametrize(
    ("shape", "rows", "operation"),
    [
        ((512, 1024), 8, "baddbmm_"),
        ((1024, 512), 3, "baddbmm_"),
        ((1024, 512), 4, "addmm_"),  # rows of half a page
        ((512, 1024), 9, "addmm_"),
        ((1000, 1000), 2, "addmm_"),  # rows that are no pages
        ((516, 1024), 2, "addmm_"),  # no equal blocks
        ((256, 512), 2, "addmm_"),  # too small
        ((512, 1024), 0, "addmm_"),
    ],
    ids=str,
)
@torch.no_grad()
def test_add_product(shape: tuple[int, int], rows: int, operation: str, beta: float) -> None:
    target, delta, a = random(*shape), random(rows, shape[0]), random(rows, shape[1])
    if beta == 0:
        target.fill_(float("nan"))  # not even that is read
    truth = -0.25 * delta.double().t() @ a.double() + (beta * target.double() if beta else 0)
    version = target._version
    with Operations() as seen:
        assert add_product(target, delta, a, alpha=-0.25, beta=beta) is target
    assert operation in seen.names and seen.largest == 0 and target._version > version
    assert_close(target, truth)


@pytest.mark.parametrize(("beta", "operation"), [(1.0, "addcmul_"), (0.5, "addr_"), (0.0, "addr_")])
@torch.no_grad()
def test_add_product_of_one_row(beta: float, operation: str) -> None:
    target, delta, a = random(30, 40), random(1, 30), random(1, 40)
    truth = beta * target.double() - 0.25 * delta.double().t() @ a.double()
    with Operations() as seen:
        add_product(target, delta, a, alpha=-0.25, beta=beta)
    assert operation in seen.names and seen.largest == 0
    assert_close(target, truth)


@torch.no_grad()
def test_factors_that_do_not_lie_in_rows_stay_out_of_blocks() -> None:
    target, delta, a = random(512, 1024), random(8, 512), random(1024, 8).t()
    truth = target.double() + delta.double().t() @ a.double()
    with Operations() as seen:  # baddbmm_ would copy `a` for every block, which is as much as the target
        add_product(target, delta, a, alpha=1.0, beta=1.0)
    assert "baddbmm_" not in seen.names
    assert_close(target, truth)


def test_views_are_made_once_in_the_thread_that_said_so() -> None:
    """Two blocks that overlap in two threads: neither is seen by the other, and neither stays open for good."""
    first, second = views_made_once(), views_made_once()
    with ThreadPoolExecutor(1) as other:
        first.__enter__()
        assert not other.submit(lambda: _views.are_made_once).result()
        other.submit(second.__enter__).result()
        first.__exit__(None, None, None)
        assert not _views.are_made_once and other.submit(lambda: _views.are_made_once).result()
        other.submit(second.__exit__, None, None, None).result()
        assert not other.submit(lambda: _views.are_made_once).result()


def test_the_plain_forms_stand_where_blocks_would_not_do() -> None:
    weight, a, delta = random(512, 1024), random(4, 1024), random(4, 512)
    for x, w in ((a.double(), weight.double()), (a.clone().requires_grad_(), weight)):  # no float32; differentiable
        with Operations() as seen:
            times_weight_transposed(x, w, None)
        assert "bmm" not in seen.names
    torch.set_num_threads(1)
    with torch.no_grad(), Operations() as seen:
        times_weight_transposed(a, weight, None)
        times_weight(delta, weight)
    assert "bmm" not in seen.names
