"""check_backward: no false alarm on what is right, and what it says of wrong calls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import manualgrad as mg
from manualgrad.conformance.check_backward import CHECKS
from tests.conformance.hand_written import Linear, numbers, one, rectangular


class SwiGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class SwiGLUByHand(torch.autograd.Function):
    """silu(g) * u, right, with second derivatives."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g, u):
        return F.silu(g) * u

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, upstream):
        g, u = ctx.saved_tensors
        s = torch.sigmoid(g)
        return (
            upstream * u * s * (1 + g * (1 - s)) if ctx.needs_input_grad[0] else None,
            upstream * g * s if ctx.needs_input_grad[1] else None,
        )


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Head(nn.Module):
    """One attention head, as people write it."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * (1 - ctx.saved_tensors[0] ** 2).conj()


CORRECT = {
    "nn.Linear": (nn.Linear(4, 3), nn.Linear(4, 3), one),
    "linear by hand": (Linear, F.linear, rectangular),
    "complex linear": (Linear, F.linear, lambda: numbers((5, 4), (3, 4), (3,), dtype=torch.complex64)),
    "LayerNorm": (nn.LayerNorm(4), nn.LayerNorm(4), one),
    "SwiGLU": (SwiGLU(), SwiGLU(), one),
    "SwiGLU by hand": (SwiGLUByHand, lambda g, u: F.silu(g) * u, lambda: numbers((5, 4), (5, 4))),
    "embedding": (nn.Embedding(7, 3), nn.Embedding(7, 3), lambda: [torch.randint(7, (5,))]),
    "convolution": (nn.Conv2d(1, 2, 3), F.conv2d, lambda: numbers((2, 1, 5, 5))),
    "RMSNorm": (nn.RMSNorm(4), nn.RMSNorm(4), one),
    "GroupNorm": (nn.GroupNorm(2, 4), nn.GroupNorm(2, 4), lambda: numbers((3, 4, 2))),
    "bilinear": (nn.Bilinear(4, 3, 2), F.bilinear, lambda: numbers((5, 4), (5, 3))),
    "attention head": (Head(), Head(), lambda: numbers((2, 3, 4))),
    "attention": (Attention(), Attention(), lambda: numbers((2, 3, 4))),
    "batch norm": (nn.BatchNorm1d(4), nn.BatchNorm1d(4), one),
    "dropout": (nn.Dropout(0.5), nn.Dropout(0.5), one),
    "cross entropy": (F.cross_entropy, F.cross_entropy, lambda: [*numbers((5, 4)), torch.randint(4, (5,))]),
    "LSTM cell": (nn.LSTMCell(4, 3), nn.LSTMCell(4, 3), one),
    "not twice differentiable": (Once, torch.tanh, one),
    "residual block": (lambda x: x + F.relu(x), lambda x: x + F.relu(x), one),
    "float64": (Linear, F.linear, lambda: numbers((5, 4), (3, 4), (3,), dtype=torch.float64)),
    "bfloat16": (Linear, F.linear, lambda: numbers((5, 4), (3, 4), (3,), dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("layer, reference, inputs", CORRECT.values(), ids=CORRECT.keys())
def test_no_false_alarm(layer, reference, inputs):
    torch.compiler.reset()
    report = mg.check_backward(layer, reference, *inputs())
    report.assert_ok(require=("output", "gradient", "gradcheck", "torch.compile"))
    if isinstance(layer, nn.Module):
        report.assert_ok(strict=True)


OURS = {
    **{
        f"Dense, {name}": (
            mg.Dense(4, 3, activation=name),
            lambda x, w, b, sigma=activation: sigma.value(F.linear(x, w, b)),
            one,
        )
        for name, activation in mg.activations.items()
    },
    "Dense without bias": (
        mg.Dense(4, 3, bias=False, activation="tanh"),
        lambda x, w: torch.tanh(F.linear(x, w)),
        lambda: numbers((2, 5, 4)),
    ),
    "complex dense": (
        lambda x, w: mg.dense(x, w, activation="tanh"),
        lambda x, w: torch.tanh(F.linear(x, w)),
        lambda: numbers((5, 4), (3, 4), dtype=torch.complex128),
    ),
    "MLP": (
        mg.MLP([4, 5, 3]),
        lambda x, w, b, v, c: F.linear(F.relu(F.linear(x, w, b)), v, c),
        one,
    ),
    "quadratic loss": (
        mg.QuadraticLoss(),
        lambda a, y: 0.5 * (a - y).square().sum() / max(1, a[..., 0].numel()) if a.numel() else (a - y).square().mean(),
        lambda: numbers((5, 4), (5, 4)),
    ),
    "binary cross-entropy": (
        mg.BinaryCrossEntropyLoss(),
        F.binary_cross_entropy_with_logits,
        lambda: [torch.randn(5, 4), torch.rand(5, 4)],
    ),
    "softmax cross-entropy": (
        mg.SoftmaxCrossEntropyLoss(),
        F.cross_entropy,
        lambda: [torch.randn(5, 4), torch.rand(5, 4)],
    ),
    "softmax cross-entropy, indices": (
        mg.SoftmaxCrossEntropyLoss(),
        F.cross_entropy,
        lambda: [torch.randn(5, 4), torch.randint(4, (5,))],
    ),
}


@pytest.mark.parametrize("layer, reference, inputs", OURS.values(), ids=OURS.keys())
def test_our_own_layers_activations_and_losses(layer, reference, inputs):
    report = mg.check_backward(layer, reference, *inputs(), skip=["torch.compile"])
    inapplicable = {"complex", "cuda", "copies", "autocast", "more axes", "fewer axes", "empty batch"}
    report.assert_ok(require=CHECKS.keys() - inapplicable - {"torch.compile"})
    assert report.not_supported.keys() <= {"complex"}, report  # of the losses by their own sentence


def test_nothing_of_the_callers_is_changed():
    layer, x = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), torch.randn(5, 4, requires_grad=True)
    before, value = {k: v.clone() for k, v in layer.state_dict().items()}, x.detach().clone()
    state = torch.random.get_rng_state()
    mg.check_backward(layer, layer, x, skip=["torch.compile"]).assert_ok()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(x, value) and x.grad is None and x._version == 0
    assert all(p.grad is None for p in layer.parameters())


@pytest.mark.parametrize(
    "call, error, sentence",
    [
        (
            lambda: mg.check_backward(nn.Linear, F.linear, torch.randn(2, 3)),
            TypeError,
            "check_backward expected `layer` to be a function, a module or an autograd.Function, got "
            "<class 'torch.nn.modules.linear.Linear'>. Pass an instance of a module, not its class.",
        ),
        (
            lambda: mg.check_backward(torch.sin, None, torch.randn(2, 3)),
            TypeError,
            "check_backward expected `reference` to be a function, a module or an autograd.Function, got None. "
            "Pass an instance of a module, not its class.",
        ),
        (
            lambda: mg.check_backward(Once, torch.randn(4, 3)),
            TypeError,
            "check_backward expected `reference` to be a function, a module or an autograd.Function, got a tensor of shape "
            "(4, 3). Pass the same computation before the inputs: check_backward(layer, reference, *inputs).",
        ),
        (
            lambda: mg.check_backward(torch.sin, torch.sin, torch.arange(3)),
            ValueError,
            "check_backward expected a floating point or complex input, or a module with parameters, got none. "
            "Pass the tensors that the layer is called with.",
        ),
        (
            lambda: mg.check_backward(nn.Linear(2, 3), nn.Linear(3, 2), torch.randn(2, 2)),
            ValueError,
            "check_backward expected a reference with the layer's parameters {'weight': (3, 2), 'bias': (3,)}, got "
            "{'weight': (2, 3), 'bias': (2,)}. Name and shape them alike, or pass a function (*inputs, *parameters) as the "
            "reference.",
        ),
        (
            lambda: mg.check_backward(torch.sin, torch.sin, torch.randn(2), skip=["compile"]),
            ValueError,
            "check_backward expected `skip` to name checks, got ['compile']. The checks are: output, gradient, frozen inputs, "
            "gradcheck, gradgradcheck, complex, other inputs, non-contiguous, expanded, "
            "upstream layout, batch of one, empty batch, more axes, "
            "fewer axes, in place, memory leak, saved tensors, determinism, no_grad, surroundings, autocast, "
            "torch.compile, vmap, jvp, copies, cuda.",
        ),
        (
            lambda: mg.check_backward(torch.sin, lambda x: x.detach().nosuch, torch.randn(2)),
            ValueError,
            "check_backward expected a reference that can be differentiated on these inputs, got AttributeError: 'Tensor' "
            "object has no attribute 'nosuch'. Call it as reference(*inputs), or reference(*inputs, *parameters) for a "
            "module, until that works.",
        ),
    ],
)
def test_errors(call, error, sentence):
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == sentence


def test_a_layer_that_raises_fails_with_its_error():
    def layer(x: Tensor) -> Tensor:
        raise RuntimeError("no such kernel")

    report = mg.check_backward(layer, torch.sin, torch.randn(2), skip=["torch.compile"])
    assert report.failed["output"].detail == "RuntimeError: no such kernel"


def test_an_instance_of_a_function_is_told_from_its_class():
    with pytest.warns(DeprecationWarning, match="should not be instantiated"):
        instance = Once()
    with pytest.raises(TypeError) as raised:
        mg.check_backward(instance, torch.tanh, torch.randn(4, 3))
    assert str(raised.value) == (
        "check_backward expected `layer` to be a Function's class, got an instance. Pass Once or Once.apply."
    )
