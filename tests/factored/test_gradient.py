"""FactoredGradient as a tensor: its value, copies, conversions, and what it refuses."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from tests.factored.nets import assert_same_weights, batch, net, train, twin


pytestmark = pytest.mark.usefixtures("small_weights_too")


def gradient(rows: int = 2) -> mg.FactoredGradient:
    generator = torch.Generator().manual_seed(0)
    delta, a = (torch.randn(rows, k, generator=generator, dtype=torch.float64) for k in (4, 5))
    return mg.FactoredGradient(delta, a)


def live_model() -> tuple[mg.MLP, mg.GradientDescent]:
    model = net()
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    x, y = batch()
    nn.functional.mse_loss(model(x), y).backward()
    return model, optimizer


def test_is_delta_transposed_times_a() -> None:
    g = gradient()
    assert g.shape == (4, 5) and g.rank == 2 and not g.is_dense and isinstance(g, Tensor)
    assert torch.equal(g.to_dense(), g.delta.t() @ g.a)
    assert repr(g) == "FactoredGradient(shape=(4, 5), rank=2, dtype=torch.float64, device='cpu')"
    assert not g.is_dense


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda g: pickle.loads(pickle.dumps(g)),
    "torch.save": lambda g: torch.load(_saved(g), weights_only=True),
}


def _saved(x: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_keep_the_factors_and_are_independent(copied: Callable[[Any], Any]) -> None:
    g = gradient()
    g.mul_(0.5)
    other = copied(g)
    assert isinstance(other, mg.FactoredGradient) and other.rank == 2
    expected = g.to_dense()
    g.zero_()
    assert torch.equal(other.to_dense(), expected)


def test_a_model_with_live_gradients_is_copied_and_saved() -> None:
    model, _ = live_model()
    assert_same_weights(copy.deepcopy(model), model)
    assert_same_weights(torch.load(_saved(model), weights_only=False), model)
    assert_same_weights(pickle.loads(pickle.dumps(model)), model)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    model, optimizer = live_model()
    optimizer.zero_grad(set_to_none)
    assert (model[0].weight.grad is None) == set_to_none
    if not set_to_none:
        assert float(model[0].weight.grad.norm()) == 0.0
    other = twin(model)
    train(model, optimizer, steps=2)
    train(other, torch.optim.SGD(other.parameters(), lr=0.1), steps=2)
    assert_same_weights(model, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_module_is_converted_with_live_gradients(dtype: torch.dtype) -> None:
    model, optimizer = live_model()
    dense = model[0].weight.grad.to_dense()
    model.to(dtype)
    g = model[0].weight.grad
    assert g.dtype == dtype and isinstance(g, mg.FactoredGradient)
    rounding = 4 * torch.finfo(dtype).eps * float(dense.abs().max())
    torch.testing.assert_close(g.to_dense().double(), dense, rtol=0, atol=rounding)
    before = model[0].weight.detach().clone()
    optimizer.step()
    rounding = torch.finfo(dtype).eps * float(before.abs().max()) + rounding
    torch.testing.assert_close(model[0].weight.detach().double(), before - 0.1 * dense, rtol=0, atol=rounding)


READERS: dict[str, Callable[[Tensor], Any]] = {
    "numpy": lambda g: torch.from_numpy(g.numpy()),
    "tolist": lambda g: torch.tensor(g.tolist(), dtype=torch.float64),
    "index": lambda g: g[:],
    "sorted": lambda g: g.sort(descending=True).values.sort().values.gather(1, g.argsort().argsort()),
    "view": lambda g: g.view(5, 4).view(4, 5),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_what_needs_every_entry_makes_it_dense_and_says_so(read: Callable[[Tensor], Any], monkeypatch: Any) -> None:
    monkeypatch.setattr("manualgrad.factored.densify._warned", set())
    g = gradient()
    expected = g.to_dense()
    with (
        mg.forbid_densify(),
        pytest.raises(RuntimeError, match=r"needs every entry of a factored gradient of shape \(4, 5\)"),
    ):
        read(g)
    assert not g.is_dense
    with pytest.warns(mg.FactorsLostWarning, match="which becomes dense and as large as its weight"):
        value = read(g)
    assert g.is_dense and torch.equal(value, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(gradient().densify())


@pytest.mark.filterwarnings("ignore::manualgrad.FactorsLostWarning")
def test_writes_through_a_view_and_in_place_are_seen_by_every_holder() -> None:
    g = gradient()
    alias = g.detach()
    g.view(-1)[0] = 7.0
    g[1].zero_()
    assert float(alias.to_dense()[0, 0]) == 7.0 and not alias.to_dense()[1].any()
    alias.abs_()
    assert torch.equal(alias.to_dense(), g.to_dense())


@pytest.mark.parametrize("name", ["t_", "squeeze_", "resize_"])
def test_a_change_of_shape_in_place_is_refused(name: str) -> None:
    g = gradient()
    with pytest.raises(
        RuntimeError, match=r"^A factored gradient expected to keep its shape, got the in-place operation"
    ):
        getattr(g, name)(*([(2, 10)] if name == "resize_" else []))
    assert g.shape == (4, 5) and not g.is_dense


def test_a_dense_gradient_has_no_factors_to_read() -> None:
    g = gradient()
    g.densify()
    with pytest.raises(
        RuntimeError, match=r"^delta expected a gradient that still has its factors, got one that has become dense"
    ):
        _ = g.delta


@pytest.mark.parametrize(
    ("delta", "a", "rows_per_sample", "error", "sentence"),
    [
        ((2, 3), (4, 5), 1, ValueError, r"got \(2, 3\) and \(4, 5\)\. Flatten the batch axes of both\.$"),
        ((2, 3, 4), (2, 5), 1, ValueError, r"got \(2, 3, 4\) and \(2, 5\)\. Flatten the batch axes of both\.$"),
        ((4, 3), (4, 5), 3, ValueError, r"to divide the 4 rows of its factors, got 3\. Pass the length"),
    ],
)
def test_factors_that_do_not_fit(
    delta: Any, a: Any, rows_per_sample: int, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        mg.FactoredGradient(torch.zeros(delta), torch.zeros(a), rows_per_sample=rows_per_sample)


def test_factors_of_two_dtypes() -> None:
    with pytest.raises(
        TypeError, match=r"^FactoredGradient expected real floating point factors of one dtype on one device"
    ):
        mg.FactoredGradient(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.float64))


def test_detect_anomaly() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly():
            model, optimizer = live_model()
        optimizer.step()


def test_factors_of_a_hidden_layer_hold_no_graph() -> None:
    model = mg.MLP([192, 192, 200, 3], "tanh")
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    mg.QuadraticLoss()(model(torch.randn(5, 192)), torch.randn(5, 3)).backward()
    gradient = model[1].weight.grad
    assert isinstance(gradient, mg.FactoredGradient)
    for value in (gradient.a, gradient.delta, gradient.to_dense(), gradient.per_sample_norms(), gradient.norm()):
        assert not value.requires_grad
    optimizer.step()
