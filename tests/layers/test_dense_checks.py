"""The sentences for what a dense layer does not accept."""

import re
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from tests.activation.unknown_activation import unknown_activation


LAYER = "A dense layer of 3 features in and 2 out"


def fails(call: Callable[[], object], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        call()


@pytest.mark.parametrize("shape", [(4, 2), (3, 4), (0,), (), (3, 0)], ids=str)
def test_feature_size(shape: tuple[int, ...]) -> None:
    layer = mg.Dense(3, 2)
    fails(
        lambda: layer(torch.ones(shape)),
        ValueError,
        f"{LAYER} expected an input of shape (..., 3), got {shape}. "
        "Change the input's last dimension or make the layer of that size.",
    )


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool, torch.complex64])
def test_dtype(dtype: torch.dtype, autocast: bool) -> None:
    layer = mg.Dense(3, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        fails(
            lambda: layer(torch.ones(4, 3).to(dtype)),
            TypeError,
            f"{LAYER} expected an input of its weight's dtype torch.float32, got {dtype}. "
            "Convert the input with input.to(torch.float32) or the layer with layer.to(...).",
        )


def test_half_precision_input_needs_autocast() -> None:
    layer, x = mg.Dense(3, 2), torch.ones(4, 3, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="got torch.bfloat16"):
        layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_integers() -> None:
    fails(
        lambda: mg.dense(torch.ones(4, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)),
        TypeError,
        f"{LAYER} expected floating point or complex numbers, got torch.int64. Convert input and weight with .float().",
    )


@pytest.mark.parametrize("grad_mode", [True, False])
def test_not_tensors(grad_mode: bool) -> None:
    with torch.set_grad_enabled(grad_mode):
        fails(
            lambda: mg.Dense(3, 2)([[1.0, 2.0, 3.0]]),
            TypeError,
            "A dense layer expected a torch.Tensor as input, got list. Convert it with torch.as_tensor(input).",
        )
        fails(
            lambda: mg.dense(torch.ones(4, 3), [[1.0, 2.0, 3.0]]),  # type: ignore[arg-type]
            TypeError,
            "A dense layer expected a torch.Tensor as weight, got list. Convert it with torch.as_tensor(weight).",
        )


@pytest.mark.parametrize("shape", [(3,), (), (1, 2, 3)], ids=str)
def test_weight_shape(shape: tuple[int, ...]) -> None:
    fails(
        lambda: mg.dense(torch.ones(4, 3), torch.ones(shape)),
        ValueError,
        f"A dense layer expected a weight of shape (features out, features in), got {shape}. "
        "Reshape it to two dimensions.",
    )


@pytest.mark.parametrize("shape", [(3,), (1,), (), (1, 2), (2, 1)], ids=str)
def test_bias_shape(shape: tuple[int, ...]) -> None:
    """Also those that would broadcast: (1,), () and (1, 2)."""
    fails(
        lambda: mg.dense(torch.ones(4, 3), torch.ones(2, 3), torch.ones(shape)),
        ValueError,
        f"{LAYER} expected a bias of shape (2,), got {shape}. Give one bias for each feature out.",
    )


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bias", [[1.0, 2.0], 1.0, "bias"], ids=repr)
def test_bias_is_no_tensor(bias: object, autocast: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        fails(
            lambda: mg.dense(torch.ones(4, 3), torch.ones(2, 3), bias),  # type: ignore[arg-type]
            TypeError,
            f"A dense layer expected a torch.Tensor as bias, got {type(bias).__name__}. Convert it with torch.as_tensor(bias).",
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("grad_mode", [True, False])
def test_bias_dtype(dtype: torch.dtype, grad_mode: bool) -> None:
    with torch.set_grad_enabled(grad_mode):
        fails(
            lambda: mg.dense(torch.ones(4, 3), torch.ones(2, 3), torch.ones(2).to(dtype)),
            TypeError,
            f"{LAYER} expected a bias of its weight's dtype torch.float32, got {dtype}. Convert it with bias.to(torch.float32).",
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.complex64])
def test_bias_dtype_that_autocast_does_not_cast(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        fails(
            lambda: mg.dense(torch.ones(4, 3), torch.ones(2, 3), torch.ones(2).to(dtype)),
            TypeError,
            f"{LAYER} expected a bias of its weight's dtype torch.bfloat16, got {dtype}. Convert it with bias.to(torch.bfloat16).",
        )


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)], ids=str)
def test_autocast_casts_weight_and_bias_each(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    weight = torch.randn(2, 3).to(dtypes[0]).requires_grad_()
    bias = torch.randn(2).to(dtypes[1]).requires_grad_()
    x = torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = mg.dense(x, weight, bias), nn.functional.linear(x, weight, bias)
    assert torch.equal(ours, theirs) and ours.dtype == torch.bfloat16
    for g, expected in zip(
        torch.autograd.grad(ours.sum(), (weight, bias)), torch.autograd.grad(theirs.sum(), (weight, bias)), strict=True
    ):
        assert torch.equal(g, expected) and g.dtype == expected.dtype


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize(
    ("role", "device"),
    [
        ("bias", "meta"),  # a device that every machine has; PyTorch lets a weight there pass
        pytest.param("bias", "cuda", marks=pytest.mark.cuda),
        pytest.param("weight", "cuda", marks=pytest.mark.cuda),
    ],
)
def test_device(role: str, device: str, grad_mode: bool, autocast: bool) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    arguments: dict[str, Any] = {"weight": torch.ones(2, 3, requires_grad=True), "bias": torch.ones(2)}
    arguments[role] = arguments[role].to(device)
    with torch.set_grad_enabled(grad_mode), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        fails(
            lambda: mg.dense(torch.ones(4, 3), **arguments),
            ValueError,
            f"A dense layer expected its {role} on the input's device cpu, got {arguments[role].device}. "
            "Move one of them with .to(...).",
        )


@pytest.mark.parametrize("layer", [lambda *given: mg.Dense(3, *given), mg.LazyDense], ids=["Dense", "LazyDense"])
@pytest.mark.parametrize(
    ("bias", "advice"),
    [
        ("relu", "activation='relu'"),
        ("ReLU", "activation='relu'"),
        (mg.activations["gelu"], "activation='gelu'"),
        (nn.Tanh(), "activation='tanh'"),
        (torch.relu, "activation='relu'"),
        ("no", "bias=True or bias=False"),
        (1.0, "bias=True or bias=False"),
        (2, "bias=True or bias=False"),
        (numpy.array([True]), "bias=True or bias=False"),
        (torch.tensor(True), "bias=True or bias=False"),
    ],
    ids=lambda value: re.sub(r"( at 0x\w+)?\W+", "-", str(value)),
)
def test_bias_is_yes_or_no(layer: Callable[..., mg.Dense], bias: object, advice: str) -> None:
    name = "Dense" if layer is not mg.LazyDense else "LazyDense"
    sentence = f"{name} expected `bias` to be True or False, got {bias!r}. Pass {advice}."
    fails(lambda: layer(2, bias), TypeError, sentence)


@pytest.mark.parametrize("bias", [True, False, None, 1, 0, numpy.bool_(True), numpy.bool_(False)], ids=repr)
def test_every_yes_and_no_is_a_bias(bias: Any) -> None:
    assert (mg.Dense(3, 2, bias).bias is not None) == bool(bias)
    lazy = mg.LazyDense(2, bias)
    lazy(torch.ones(4, 3))
    assert (lazy.bias is not None) == bool(bias)


def test_unknown_activation_comes_first() -> None:
    state, sentence = torch.get_rng_state(), unknown_activation("relv", " Did you mean 'relu'?")
    fails(lambda: mg.Dense(3, 2, activation="relv"), ValueError, sentence)
    fails(lambda: mg.LazyDense(2, activation="relv"), ValueError, sentence)
    assert torch.equal(torch.get_rng_state(), state)
    fails(lambda: mg.dense(torch.ones(4, 3), torch.ones(2, 3), None, "relv"), ValueError, sentence)


@pytest.mark.parametrize(
    ("sizes", "error", "sentence"),
    [
        (
            (-1, 2),
            ValueError,
            "Dense expected `in_features` to be at least 0, got -1. Pass for example Dense(784, 30).",
        ),
        (
            (3, -2),
            ValueError,
            "Dense expected `out_features` to be at least 0, got -2. Pass for example Dense(784, 30).",
        ),
        (
            (2.0, 3),
            TypeError,
            "Dense expected `in_features` to be an integer, got 2.0. Pass for example Dense(784, 30).",
        ),
        (
            (2, "3"),
            TypeError,
            "Dense expected `out_features` to be an integer, got '3'. Pass for example Dense(784, 30).",
        ),
    ],
    ids=repr,
)
def test_sizes(sizes: tuple[Any, Any], error: type[Exception], sentence: str) -> None:
    state = torch.get_rng_state()
    fails(lambda: mg.Dense(*sizes), error, sentence)
    if "out_features" in sentence:
        fails(lambda: mg.LazyDense(sizes[1]), error, sentence)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("bad", [torch.ones(2, 3), nn.ReLU(), nn.Linear])
def test_from_linear(bad: object) -> None:
    fails(
        lambda: mg.Dense.from_linear(bad),  # type: ignore[arg-type]
        TypeError,
        f"Dense.from_linear expected an nn.Linear, got {type(bad).__name__}. Pass the linear layer itself.",
    )


def test_from_a_lazy_linear() -> None:
    lazy = nn.LazyLinear(2)
    fails(
        lambda: mg.Dense.from_linear(lazy),
        ValueError,
        "Dense.from_linear expected a layer of known sizes, got LazyLinear before its first batch. Call it once, or use LazyDense.",
    )
    lazy(torch.ones(4, 3))
    assert mg.Dense.from_linear(lazy).weight is lazy.weight


def test_nothing_has_changed_before_an_error() -> None:
    layer = mg.Dense(3, 2, activation="gelu")
    x = torch.ones(4, 2, requires_grad=True)
    before: list[tuple[Tensor, int]] = [(p.detach().clone(), p._version) for p in layer.parameters()]
    with pytest.raises(ValueError, match="expected an input of shape"):
        layer(x)
    for p, (values, version) in zip(layer.parameters(), before, strict=True):
        assert torch.equal(p, values) and p._version == version
    assert x.grad is None and layer.weight.grad is None
