"""Dense layers: values and gradients against nn.Linear and autograd."""

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.testing._internal.common_methods_invocations import op_db

import manualgrad as mg


LINEAR = next(op for op in op_db if op.name == "nn.functional.linear")
TWINS: dict[str, nn.Module] = {
    "identity": nn.Identity(),
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(),
    "elu": nn.ELU(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "softplus": nn.Softplus(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
}
COMPLEX = ["identity", "sigmoid", "tanh"]
SHAPES = [(3,), (4, 3), (1, 3), (0, 3), (2, 5, 3), (2, 0, 3), (2, 1, 2, 1, 3)]


def double(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def test_the_twins_are_all_there() -> None:
    assert set(TWINS) == set(mg.activations)


# Against torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_pytorch_s_own_samples_are_equal(dtype: torch.dtype) -> None:
    samples = list(LINEAR.sample_inputs("cpu", dtype, requires_grad=True))
    assert len(samples) >= 18
    for sample in samples:
        ours, theirs = mg.dense(sample.input, *sample.args), LINEAR(sample.input, *sample.args)
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
        upstream = torch.randn_like(ours)
        leaves = [x for x in (sample.input, *sample.args) if isinstance(x, Tensor) and x.requires_grad]
        assert len(leaves) >= 2
        found = torch.autograd.grad(ours, leaves, upstream)
        expected = torch.autograd.grad(theirs, leaves, upstream)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), sample


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_layer_equals_linear_and_activation(name: str, shape: tuple[int, ...]) -> None:
    linear = nn.Linear(3, 2, dtype=torch.float64)
    layer = mg.Dense.from_linear(linear, name)
    x = double(*shape)
    ours, theirs = layer(x), TWINS[name](linear(x))
    assert torch.equal(ours, theirs)
    upstream = torch.randn_like(ours)
    leaves = (x, linear.weight, linear.bias)
    found = torch.autograd.grad(ours, leaves, upstream)
    expected = torch.autograd.grad(theirs, leaves, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_equals_linear_and_activation(name: str) -> None:
    linear = nn.Linear(3, 2, dtype=torch.complex128)
    x = torch.randn(4, 3, dtype=torch.complex128, requires_grad=True)
    ours, theirs = mg.Dense.from_linear(linear, name)(x), TWINS[name](linear(x))
    upstream = torch.randn_like(ours)
    found = torch.autograd.grad(ours, (x, linear.weight, linear.bias), upstream)
    expected = torch.autograd.grad(theirs, (x, linear.weight, linear.bias), upstream)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    layer = mg.Dense(5, 4, activation=name, dtype=dtype)
    x = torch.randn(6, 5, dtype=dtype, requires_grad=True)
    a = layer(x)
    upstream = torch.randn_like(a)
    found = torch.autograd.grad(a, (x, layer.weight, layer.bias), upstream)
    assert a.dtype == dtype and {g.dtype for g in found} == {dtype}
    wide = copy.deepcopy(layer).double()
    wide_x = x.detach().double().requires_grad_()
    truth = torch.autograd.grad(wide(wide_x), (wide_x, wide.weight, wide.bias), upstream.double())
    for gradient, expected in zip(found, truth, strict=True):
        error = (gradient.double() - expected).abs().max() / expected.abs().max()
        assert error < 8 * torch.finfo(dtype).eps


# gradcheck


@pytest.mark.parametrize("name", TWINS)
def test_first_and_second_derivatives(name: str) -> None:
    inputs = (double(4, 3), double(2, 3), double(2))
    assert gradcheck(lambda x, w, b: mg.dense(x, w, b, name), inputs, check_batched_grad=True)
    assert gradgradcheck(lambda x, w, b: mg.dense(x, w, b, name), inputs, check_batched_grad=True)


@pytest.mark.parametrize("name", ["identity", "sigmoid", "gelu"])
@pytest.mark.parametrize("needs", [n for n in itertools.product([True, False], repeat=3) if any(n)], ids=str)
def test_derivatives_with_frozen_inputs(name: str, needs: tuple[bool, bool, bool]) -> None:
    inputs = tuple(
        x.requires_grad_(need) for x, need in zip((double(4, 3), double(2, 3), double(2)), needs, strict=True)
    )
    assert gradcheck(lambda x, w, b: mg.dense(x, w, b, name), inputs)
    assert gradgradcheck(lambda x, w, b: mg.dense(x, w, b, name), inputs)


@pytest.mark.parametrize("name", ["identity", "tanh", "silu"])
@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 2, 3), (2, 0, 3)], ids=str)
def test_derivatives_of_other_shapes(name: str, shape: tuple[int, ...]) -> None:
    for inputs in ((double(*shape), double(2, 3), double(2)), (double(*shape), double(2, 3))):
        assert gradcheck(lambda x, w, b=None: mg.dense(x, w, b, name), inputs)
        assert gradgradcheck(lambda x, w, b=None: mg.dense(x, w, b, name), inputs)


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_derivatives(name: str) -> None:
    inputs = tuple(torch.randn(s, dtype=torch.complex128, requires_grad=True) for s in ((2, 3), (2, 3), (2,)))
    assert gradcheck(lambda x, w, b: mg.dense(x, w, b, name), inputs)
    assert gradgradcheck(lambda x, w, b: mg.dense(x, w, b, name), inputs)


# Memory layouts

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "expanded": lambda x: x[:1].expand_as(x),
    "all one number": lambda x: x[:1, :1].expand_as(x),
    "offset": lambda x: torch.cat([x, x])[x.size(0) :],
    "conjugate view": lambda x: torch.complex(x, -x).conj().imag,  # a negated view
}


@pytest.mark.parametrize("name", ["identity", "relu", "gelu"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 3)], ids=str)
def test_layouts_of_input_weight_and_upstream_gradient(name: str, layout: str, shape: tuple[int, ...]) -> None:
    as_laid_out = LAYOUTS[layout]
    x, w, b = (as_laid_out(double(*shape).detach()), as_laid_out(double(2, 3).detach()), double(2).detach())
    upstream = as_laid_out(torch.randn(*shape[:-1], 2, dtype=torch.float64))
    plain = [t.clone(memory_format=torch.contiguous_format).requires_grad_() for t in (x, w, b)]
    odd = [t.detach().requires_grad_() for t in (x, w, b)]
    found = torch.autograd.grad(mg.dense(odd[0], odd[1], odd[2], name), odd, upstream)
    expected = torch.autograd.grad(
        TWINS[name](nn.functional.linear(plain[0], plain[1], plain[2])), plain, upstream.contiguous()
    )
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)


# What is kept and computed


def saved_by(forward: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    saved: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = forward()
    return output, saved


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("needs_input", [True, False])
@pytest.mark.parametrize("needs_weight", [True, False])
@pytest.mark.parametrize("needs_bias", [True, False])
def test_only_what_the_backward_pass_uses_is_saved(
    name: str, needs_input: bool, needs_weight: bool, needs_bias: bool
) -> None:
    """The input for dC/dw, the weight for dC/da, and one of a and z for sigma'."""
    x, w, b = double(4, 3), double(2, 3), double(2)
    for tensor, needs in ((x, needs_input), (w, needs_weight), (b, needs_bias)):
        tensor.requires_grad_(needs)
    _, saved = saved_by(lambda: mg.dense(x, w, b, name))
    if not (needs_input or needs_weight or needs_bias):
        assert saved == []
        return
    assert any(tensor.data_ptr() == x.data_ptr() for tensor in saved) == needs_weight
    assert any(tensor.data_ptr() == w.data_ptr() for tensor in saved) == needs_input
    assert len(saved) == needs_weight + needs_input + (name != "identity")


def test_a_first_layer_computes_no_input_gradient() -> None:
    """Counted in products of matrices: one forward, one for dC/dw; a second layer needs one more."""
    from torch.utils.flop_counter import FlopCounterMode

    first, second = mg.Dense(64, 32, activation="relu"), mg.Dense(32, 16)
    x = torch.randn(8, 64)
    with FlopCounterMode(display=False) as count:
        second(first(x)).sum().backward()
    one_first, one_second = 2 * 8 * 64 * 32, 2 * 8 * 32 * 16
    assert count.get_total_flops() == 2 * one_first + 3 * one_second


def test_a_frozen_layer_below_everything_saves_nothing() -> None:
    layer = mg.Dense(3, 2, activation="gelu").requires_grad_(False)
    output, saved = saved_by(lambda: layer(torch.randn(4, 3)))
    assert saved == [] and not output.requires_grad


@pytest.mark.parametrize("name", TWINS)
def test_nothing_saved_or_incoming_is_written_to(name: str) -> None:
    x, w, b = double(4, 3), double(2, 3), double(2)
    output, saved = saved_by(lambda: mg.dense(x, w, b, name))
    upstream = torch.randn_like(output)
    watched = [x, w, b, output, upstream, *saved]
    before = [(tensor._version, tensor.detach().clone()) for tensor in watched]
    for _ in range(2):
        output.backward(upstream, retain_graph=True)
    torch.autograd.grad(output, x, upstream, create_graph=True)[0].sum().backward()
    for tensor, (version, values) in zip(watched, before, strict=True):
        assert tensor._version == version
        assert torch.equal(tensor, values)


def test_an_input_changed_after_the_forward_pass_is_noticed() -> None:
    layer, x = mg.Dense(3, 2), torch.randn(4, 3)
    output = layer(x)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_without_grad_mode_nothing_is_recorded() -> None:
    layer, x = mg.Dense(3, 2, activation="gelu"), torch.randn(4, 3)
    expected = layer(x)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            output = layer(x)
        assert not output.requires_grad and torch.equal(output, expected)


def test_gradients_accumulate() -> None:
    layer, x = mg.Dense(3, 2, activation="tanh"), torch.randn(4, 3)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    once = layer.weight.grad.clone()
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, 2 * once)


def test_a_tied_weight_collects_both_gradients() -> None:
    w, x = double(3, 3), double(4, 3)
    ours = mg.dense(mg.dense(x, w, None, "tanh"), w.t())
    theirs = torch.tanh(x @ w.t()) @ w
    found, expected = (torch.autograd.grad(y.sum(), (x, w)) for y in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)


def test_hooks_are_called() -> None:
    layer, x, seen = mg.Dense(3, 2), torch.randn(4, 3, requires_grad=True), []
    layer.register_forward_hook(lambda module, inputs, output: seen.append("forward"))
    layer.register_full_backward_hook(lambda module, inputs, outputs: seen.append("backward"))
    layer.weight.register_hook(lambda gradient: seen.append("weight"))
    layer.weight.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    layer(x).sum().backward()
    assert sorted(seen) == ["accumulated", "backward", "forward", "weight"]


# Autocast


@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["identity", "relu", "sigmoid"])
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_equals_linear_under_autocast(
    name: str, dtype: torch.dtype, input_dtype: torch.dtype, backward_inside: bool
) -> None:
    linear = nn.Linear(5, 4)
    layer = mg.Dense.from_linear(linear, name)
    x = torch.randn(6, 5).to(input_dtype).requires_grad_()
    gradients = []
    for forward in (lambda: layer(x), lambda: TWINS[name](linear(x))):
        with torch.autocast("cpu", dtype):
            output = forward()
            assert output.dtype == dtype
        with torch.autocast("cpu", dtype) if backward_inside else nullcontext():
            gradients.append([output, *torch.autograd.grad(output.float().sum(), (x, linear.weight, linear.bias))])
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_autocast_leaves_float64_and_complex_alone() -> None:
    for dtype in (torch.float64, torch.complex64):
        layer = mg.Dense(3, 2, activation="tanh", dtype=dtype)
        x = torch.randn(4, 3, dtype=dtype, requires_grad=True)
        expected = torch.autograd.grad(layer(x).abs().sum(), (x, layer.weight))
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(x)
            found = torch.autograd.grad(output.abs().sum(), (x, layer.weight))
        assert output.dtype == dtype
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_autocast_around_the_backward_pass_only_changes_nothing() -> None:
    layer, x = mg.Dense(30, 20, activation="gelu"), torch.randn(40, 30, requires_grad=True)
    leaves = (x, layer.weight, layer.bias)
    expected = torch.autograd.grad(layer(x).sum(), leaves)
    loss = layer(x).sum()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_autocast_without_gradients() -> None:
    layer, x = mg.Dense(3, 2, activation="relu"), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        with torch.no_grad():
            assert torch.equal(layer(x), expected)


def test_autocast_second_derivatives_of_float64() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert gradgradcheck(lambda x, w: mg.dense(x, w, None, "tanh"), (double(2, 3), double(2, 3)))


# The module


def test_is_a_linear_layer() -> None:
    layer = mg.Dense(3, 2, activation="relu")
    assert isinstance(layer, nn.Linear)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert repr(layer) == "Dense(in_features=3, out_features=2, bias=True, activation='relu')"
    assert repr(mg.Dense(3, 2, False)) == "Dense(in_features=3, out_features=2, bias=False)"


def test_same_initialisation_as_linear() -> None:
    torch.manual_seed(1)
    layer = mg.Dense(30, 20)
    torch.manual_seed(1)
    linear = nn.Linear(30, 20)
    assert torch.equal(layer.weight, linear.weight) and torch.equal(layer.bias, linear.bias)


def test_state_dicts_load_both_ways() -> None:
    layer, linear = mg.Dense(3, 2, activation="relu"), nn.Linear(3, 2)
    x = torch.randn(4, 3)
    layer.load_state_dict(linear.state_dict())
    assert torch.equal(layer(x), linear(x).relu())
    other = mg.Dense(3, 2, activation="relu")
    linear.load_state_dict(other.state_dict())
    assert torch.equal(other(x), linear(x).relu())


@pytest.mark.parametrize("activation", ["gelu", None], ids=str)
def test_copies(activation: str | None) -> None:
    layer, x, buffer, whole = mg.Dense(3, 2, activation=activation), torch.randn(4, 3), io.BytesIO(), io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    torch.save(layer, whole)
    loaded = mg.Dense(3, 2, activation=activation)
    loaded.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    unpickled = torch.load(io.BytesIO(whole.getvalue()), weights_only=False)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded, unpickled):
        assert type(twin) is mg.Dense
        assert twin.activation is layer.activation
        assert twin.weight is not layer.weight
        assert torch.equal(twin(x), layer(x))


def test_from_linear_shares_parameters() -> None:
    for bias in (True, False):
        linear = nn.Linear(3, 2, bias=bias).eval()
        layer = mg.Dense.from_linear(linear, "relu")
        assert layer.weight is linear.weight and layer.bias is linear.bias
        assert not layer.training
        assert (layer.in_features, layer.out_features) == (3, 2)
    frozen = mg.Dense.from_linear(nn.Linear(3, 2).requires_grad_(False))
    assert not frozen.weight.requires_grad and frozen.activation is mg.activations["identity"]


def test_meta_device_and_to_empty() -> None:
    layer = mg.Dense(3, 2, device="meta", dtype=torch.float64)
    assert layer.weight.is_meta and layer.weight.dtype == torch.float64
    output = layer(torch.ones(4, 3, dtype=torch.float64, device="meta"))
    output.sum().backward()
    assert output.shape == (4, 2) and layer.weight.grad is not None and layer.weight.grad.is_meta
    layer.zero_grad()
    assert layer.to_empty(device="cpu")(torch.ones(4, 3, dtype=torch.float64)).shape == (4, 2)


def test_parametrised_weight() -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(mg.Dense(3, 2, activation="tanh", dtype=torch.float64))
    x, leaves = double(4, 3), list(layer.parameters())
    found = torch.autograd.grad(layer(x).sum(), leaves)
    expected = torch.autograd.grad(torch.tanh(nn.functional.linear(x, layer.weight, layer.bias)).sum(), leaves)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_activation_checkpointing() -> None:
    from torch.utils.checkpoint import checkpoint

    model, x = mg.MLP([3, 5, 2], "gelu", dtype=torch.float64), double(4, 3)
    expected = torch.autograd.grad(model(x).sum(), (x, *model.parameters()))
    for reentrant in (True, False):
        x.grad = None
        model.zero_grad()
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
        found = [x.grad, *(p.grad for p in model.parameters())]
        assert all(a is not None and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW], ids=lambda o: o.__name__)
@pytest.mark.parametrize("name", ["relu", "sigmoid", "gelu"])
def test_the_training_curve_is_that_of_linear_and_activation(optimizer: type, name: str) -> None:
    theirs = nn.Sequential(nn.Linear(8, 16), TWINS[name], nn.Linear(16, 3))
    ours = nn.Sequential(mg.Dense(8, 16, activation=name), mg.Dense(16, 3))
    ours[0].load_state_dict(theirs[0].state_dict())
    ours[1].load_state_dict(theirs[2].state_dict())
    x, y = torch.randn(64, 8), torch.randint(3, (64,))
    curves = []
    for model in (ours, theirs):
        step, curve = optimizer(model.parameters(), lr=0.01), []
        for _ in range(200):
            step.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            step.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0][-1] < 0.99 * curves[0][0]
    assert max(abs(a - b) for a, b in zip(*curves, strict=True)) <= 1e-6
