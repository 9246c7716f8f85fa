"""What reads a factored gradient gets what a dense one would give, and leaves the factors."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

import manualgrad as mg
from tests.factored.nets import assert_same_weights, net, train, twin


pytestmark = pytest.mark.usefixtures("small_weights_too")


@pytest.fixture(autouse=True)
def keep_the_factors() -> Iterator[None]:
    with mg.forbid_densify():
        yield


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def infinite(delta: Tensor, a: Tensor) -> None:
    delta[1, 2] = torch.inf


def infinite_times_zero(delta: Tensor, a: Tensor) -> None:
    delta[1, 2], a[1, 3] = torch.inf, 0.0


def not_a_number(delta: Tensor, a: Tensor) -> None:
    a[0, 4] = torch.nan


def too_large_a_product(delta: Tensor, a: Tensor) -> None:
    delta[1], a[1] = 1e30, 1e30


def too_large_products_that_cancel(delta: Tensor, a: Tensor) -> None:
    delta[1], a[1] = 1e30, 1e30
    delta[2], a[2] = -1e30, 1e30


SPOILERS = [infinite, infinite_times_zero, not_a_number, too_large_a_product]


def spoilt(spoil: Callable[[Tensor, Tensor], None]) -> mg.FactoredGradient:
    delta, a = random(3, 33), random(3, 47, seed=1)
    spoil(delta, a)
    return mg.FactoredGradient(delta, a)


@pytest.mark.parametrize("order", [1, 2, float("inf")])
@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_norm_is_infinite_or_nan_where_the_dense_one_is(
    spoil: Callable[[Tensor, Tensor], None], order: float
) -> None:
    gradient = spoilt(spoil)
    expected = torch.linalg.vector_norm(gradient.to_dense(), order)
    assert not expected.isfinite()
    torch.testing.assert_close(torch.linalg.vector_norm(gradient, order), expected, equal_nan=True)
    assert gradient.is_dense == (spoil is too_large_a_product)


@pytest.mark.parametrize("spoil", [*SPOILERS, too_large_products_that_cancel])
def test_clipping_raises_where_it_is_asked_to(spoil: Callable[[Tensor, Tensor], None]) -> None:
    parameter = nn.Parameter(torch.zeros(33, 47))
    parameter.grad = spoilt(spoil)
    with pytest.raises(RuntimeError, match="for gradients from `parameters` is non-finite"):
        clip_grad_norm_([parameter], 1.0, error_if_nonfinite=True)
    if spoil is not too_large_products_that_cancel:  # where it depends on the kernel whether inf or NaN comes of it
        assert parameter.grad.is_dense == (spoil is too_large_a_product)


@pytest.mark.parametrize("spoil", SPOILERS)
def test_clipping_does_to_other_gradients_what_a_dense_one_does(spoil: Callable[[Tensor, Tensor], None]) -> None:
    others = []
    for gradient in (spoilt(spoil), spoilt(spoil).to_dense()):
        parameters = [nn.Parameter(torch.zeros(33, 47)), nn.Parameter(torch.zeros(5))]
        parameters[0].grad, parameters[1].grad = gradient, torch.ones(5)
        clip_grad_norm_(parameters, 1.0)
        others.append(parameters[1].grad)  # zero after inf, NaN after NaN
    torch.testing.assert_close(*others, equal_nan=True)


def test_the_norm_of_zero_and_of_what_squares_cannot_hold() -> None:
    assert float(mg.FactoredGradient(torch.zeros(2, 33), random(2, 47)).norm()) == 0.0
    delta, a = random(2, 33).double() * 1e200, random(2, 47).double() * 1e-200  # whose product is about 1
    gradient = mg.FactoredGradient(delta, a)
    torch.testing.assert_close(gradient.norm(), torch.linalg.vector_norm(gradient.to_dense()))


@pytest.mark.parametrize("spoil", [lambda delta, a: None, *SPOILERS])
def test_isnan(spoil: Callable[[Tensor, Tensor], None]) -> None:
    gradient = spoilt(spoil)
    assert torch.equal(gradient.isnan(), gradient.to_dense().isnan())
    assert type(gradient.isnan()) is Tensor and not gradient.is_dense


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_detecting_anomalies_keeps_the_factors() -> None:
    model = net()
    other = twin(model)
    with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter("ignore", UserWarning)
        train(model, mg.GradientDescent(model.parameters(), lr=0.1), steps=3)
    gradient = model[0].weight.grad
    assert isinstance(gradient, mg.FactoredGradient) and not gradient.is_dense
    train(other, torch.optim.SGD(other.parameters(), lr=0.1), steps=3)
    assert_same_weights(model, other)


def test_an_anomaly_is_still_found() -> None:
    model = net()
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    x = torch.full((3, 40), torch.inf, dtype=torch.float64)
    with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter("ignore", UserWarning)
        output = model[0](x)
        with pytest.raises(
            RuntimeError, match=r"Function 'DenseFunctionBackward' returned nan values in its 1th output"
        ):
            output.sum().backward()
    del optimizer


@pytest.mark.parametrize("order", [1, 2, float("inf")])
@pytest.mark.parametrize("spoil", SPOILERS)
@pytest.mark.parametrize(
    "make",
    [
        partial(mg.GradientDescent, lr=0.1),
        partial(mg.GradientDescent, lr=0.1, momentum=0.9),
        partial(torch.optim.SGD, lr=0.1, foreach=True),
        partial(torch.optim.SGD, lr=0.1, fused=True),
    ],
    ids=["plain", "momentum", "foreach", "fused"],
)
def test_a_step_after_an_unchecked_clip_shows_nan_where_a_dense_one_does(
    make: Callable[..., torch.optim.Optimizer], spoil: Callable[[Tensor, Tensor], None], order: float
) -> None:
    weights = []
    for gradient in (spoilt(spoil), spoilt(spoil).to_dense()):
        weight = nn.Parameter(torch.zeros(33, 47))
        weight.grad = gradient
        clip_grad_norm_([weight], 1.0, norm_type=order)
        make([weight]).step()
        weights.append(weight.detach())
    assert weights[1].isnan().any()
    torch.testing.assert_close(*weights, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("number", [float("nan"), 0.0])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_adding_a_gradient_that_was_scaled_by_what_is_no_usual_number(
    rows: int, number: float, dtype: torch.dtype
) -> None:
    """A float32 product of MKL's with alpha = NaN is the product with alpha = 1."""
    gradient = mg.FactoredGradient(random(rows, 33).to(dtype), random(rows, 47, seed=1).to(dtype))
    expected = gradient.to_dense() * number
    gradient.mul_(torch.tensor(number))
    target = torch.zeros(33, 47, dtype=dtype)
    torch.testing.assert_close(gradient.add_to(target, alpha=-0.5), -0.5 * expected, equal_nan=True)
    torch.testing.assert_close(gradient.to_dense(), expected, equal_nan=True)


def test_not_a_number_in_one_gradient_makes_every_clipped_step_nan() -> None:
    parameters = [nn.Parameter(torch.zeros(33, 47)) for _ in range(2)]
    parameters[0].grad, parameters[1].grad = spoilt(not_a_number), spoilt(lambda delta, a: None)
    clip_grad_norm_(parameters, 1.0)
    mg.GradientDescent(parameters, lr=0.1).step()
    assert all(p.isnan().all() for p in parameters)
