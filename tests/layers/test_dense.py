"""Dense layers: values and gradients against nn.Linear and autograd."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.testing._internal.common_methods_invocations import op_db

import manualgrad as mg
from tests.layers.twins import COMPLEX, SHAPES, TWINS, double


LINEAR = next(op for op in op_db if op.name == "nn.functional.linear")


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
