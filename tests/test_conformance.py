"""check_backward: planted bugs are caught and named, and what is right raises no alarm."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import manualgrad as mg
from manualgrad.conformance.check import CHECKS


class Linear(torch.autograd.Function):
    """y = x w^T + b, right: the bugs below each change one thing."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, w, b):
        return x @ w.t() + b

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, w, b = inputs
        needs_x, needs_w, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_w else None, w if needs_x else None)

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        needs_x, needs_w, needs_b = ctx.needs_input_grad
        rows, x = g.reshape(-1, g.size(-1)), x if x is None else x.reshape(-1, x.size(-1))
        return (
            g @ w.conj() if needs_x else None,
            rows.t() @ x.conj() if x is not None else None,
            rows.sum(0) if needs_b else None,
        )


class MissingTranspose(Linear):
    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, x.t() @ g, g.sum(0)


class UnsummedBias(Linear):
    @staticmethod
    def backward(ctx, g):
        return *Linear.backward(ctx, g)[:2], g if ctx.needs_input_grad[2] else None


class FirstRowOnly(Linear):
    @staticmethod
    def backward(ctx, g):
        return *Linear.backward(ctx, g)[:2], g[0] if ctx.needs_input_grad[2] else None


class MeanOverBatch(Linear):
    @staticmethod
    def backward(ctx, g):
        return *Linear.backward(ctx, g)[:2], g.mean(0) if ctx.needs_input_grad[2] else None


class GradientForFrozenInput(Linear):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, g.reshape(-1, g.size(-1)).t() @ x.reshape(-1, x.size(-1)), g.reshape(-1, g.size(-1)).sum(0)


class FrozenInputFails(Linear):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(
            *(t if needed else None for t, needed in zip(inputs[:2], ctx.needs_input_grad[:2], strict=True))
        )


class MutatedUpstream(Linear):
    @staticmethod
    def backward(ctx, g):
        found = Linear.backward(ctx, g)
        g.mul_(2)
        return found[0], found[1] and found[1] if False else found[1], found[2]


class MutatedInput(Linear):
    @staticmethod
    def forward(x, w, b):
        y = x @ w.t() + b
        x.data.add_(1)
        return y


class MutatedSaved(Linear):
    @staticmethod
    def backward(ctx, g):
        found = Linear.backward(ctx, g)
        x, w = ctx.saved_tensors
        if x is not None:
            x.data.mul_(0.5)
        return found


class Leak(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.y = torch.exp(x)
        return ctx.y

    @staticmethod
    def backward(ctx, g):
        return g * ctx.y


class MissingConjugate(Linear):
    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        found = Linear.backward(ctx, g)
        return found[0], g.reshape(-1, g.size(-1)).t() @ x.reshape(-1, x.size(-1)) if x is not None else None, found[2]


class WrongSecondDerivative(torch.autograd.Function):
    """exp, whose backward treats its own output as a constant."""

    @staticmethod
    def forward(ctx, x):
        y = torch.exp(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].detach()


class WrongSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.cos(x)

    @staticmethod
    def backward(ctx, g):
        return g * torch.sin(ctx.saved_tensors[0])


class ContiguousOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return (2 * g.view(-1) * x.reshape(-1)).view(x.shape)


class ReadsMemoryInOrder(torch.autograd.Function):
    """Takes the numbers as they lie in memory, whatever the strides say."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * g * torch.as_strided(x, x.shape, torch.empty(x.shape).stride())


class WrongTangent(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g

    @staticmethod
    def jvp(ctx, t):
        return 2 * ctx.saved_tensors[0] ** 2 * t


class BackwardInHalf(Linear):
    @staticmethod
    def backward(ctx, g):
        return tuple(x if x is None else x.to(torch.bfloat16).to(x.dtype) for x in Linear.backward(ctx, g))


class Hoarder(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x, torch.sin(x), torch.cos(x), x * 2, x * 3)
        return torch.sin(x)

    @staticmethod
    def backward(ctx, g):
        return g * torch.cos(ctx.saved_tensors[0])


class Alias(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return g


calls: list = []


def remembers(x):
    calls.append(torch.sin(x))
    return calls[-1]


def random_backward(x):
    """A new number at each call, whatever the random state."""
    calls.append(None)
    return x * (1 + 1e-3 * len(calls))


class Uncopyable(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        return F.linear(x, self.weight)

    def __deepcopy__(self, memo):
        return Uncopyable()


def numbers(*shapes, dtype=torch.float32):
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def rectangular():
    return numbers((5, 4), (3, 4), (3,))


BUGS = {
    "missing transpose": (
        MissingTranspose,
        F.linear,
        rectangular,
        "gradient",
        r"a gradient has shape \(4, 3\), expected \(3, 4\): a transpose is missing",
    ),
    "missing transpose, square": (
        MissingTranspose,
        F.linear,
        lambda: numbers((5, 4), (4, 4), (4,)),
        "gradient",
        r"the gradient by input\[1\] is the transpose of what it should be: a transpose is missing",
    ),
    "forgotten sum over the batch": (
        UnsummedBias,
        F.linear,
        rectangular,
        "gradient",
        r"a gradient has shape \(5, 3\), expected \(3,\): a sum over the batch is missing",
    ),
    "only the first row": (
        FirstRowOnly,
        F.linear,
        rectangular,
        "gradient",
        r"the gradient by input\[2\] is wrong by .* entry; right for a batch of one: a sum over the batch is missing",
    ),
    "mean instead of sum": (
        MeanOverBatch,
        F.linear,
        rectangular,
        "gradient",
        r"the gradient by input\[2\] is 0.2 times what it should be; right for a batch of one: a sum over the batch is missing",
    ),
    "gradient for a frozen input": (
        GradientForFrozenInput,
        F.linear,
        rectangular,
        "frozen inputs",
        r"a gradient is computed for a frozen input \(input\[1\], input\[2\]\)",
    ),
    "frozen input fails": (
        FrozenInputFails,
        F.linear,
        rectangular,
        "frozen inputs",
        r"with gradients for input\[0\] only: .*",
    ),
    "mutated upstream gradient": (
        MutatedUpstream,
        F.linear,
        rectangular,
        "in place",
        "backward changes the upstream gradient in place",
    ),
    "mutated input": (MutatedInput, F.linear, rectangular, "in place", r"forward changes input\[0\] in place"),
    "mutated saved tensor": (MutatedSaved, F.linear, rectangular, "in place", r"backward changes input\[0\] in place"),
    "leak through ctx": (
        Leak,
        torch.exp,
        lambda: numbers((5, 4)),
        "memory leak",
        r"\d+ tensors outlive 100 calls: an output kept on ctx or in a list\? Use ctx.save_for_backward",
    ),
    "tensor on ctx": (
        Leak,
        torch.exp,
        lambda: numbers((5, 4)),
        "saved tensors",
        "ctx.y is a tensor: out of reach of saved_tensors_hooks and checkpointing, and a leak if it is the output. .*",
    ),
    "leak into a list": (
        remembers,
        torch.sin,
        lambda: numbers((5, 4)),
        "memory leak",
        r"\d+ tensors outlive 100 calls: .*",
    ),
    "missing conjugate, complex inputs": (
        MissingConjugate,
        F.linear,
        lambda: numbers((5, 4), (3, 4), (3,), dtype=torch.complex128),
        "gradient",
        r"the gradient by input\[1\] is wrong by .*; right for real numbers: a conjugate is missing",
    ),
    "wrong second derivative": (
        WrongSecondDerivative,
        torch.exp,
        lambda: numbers((5, 4)),
        "gradgradcheck",
        "the second derivative by input is 0 where it should not be",
    ),
    "wrong sign": (
        WrongSign,
        torch.cos,
        lambda: numbers((5, 4)),
        "gradient",
        "the gradient by input is -1 times what it should be: the sign is wrong",
    ),
    "view of an upstream gradient": (
        ContiguousOnly,
        torch.square,
        lambda: numbers((5, 4)),
        "upstream layout",
        "with a non-contiguous upstream gradient: view size is not compatible .*",
    ),
    "strides ignored": (
        ReadsMemoryInOrder,
        torch.square,
        lambda: numbers((5, 4)),
        "non-contiguous",
        "with non-contiguous inputs, tensor 1 is wrong by .*",
    ),
    "wrong tangent": (
        WrongTangent,
        lambda x: x**3,
        lambda: numbers((5, 4)),
        "jvp",
        "the tangent of output 0 is 0.6667 times what it should be",
    ),
    "low precision backward": (
        BackwardInHalf,
        F.linear,
        rectangular,
        "gradcheck",
        "GradcheckError: Jacobian mismatch for output 0 with respect to input .*",
    ),
    "saves too much": (
        Hoarder,
        torch.sin,
        lambda: numbers((5, 4)),
        "saved tensors",
        "320 bytes kept for the backward pass, the reference keeps 0",
    ),
    "output is a view": (
        Alias,
        lambda x: x * 1,
        lambda: numbers((5, 4)),
        "in place",
        "the output shares its memory with input",
    ),
    "not deterministic": (
        random_backward,
        lambda x: x * 1.001,
        lambda: numbers((5, 4)),
        "determinism",
        "two runs from the same random state differ",
    ),
    "a copy is another module": (
        Uncopyable(),
        F.linear,
        lambda: numbers((5, 4)),
        "copies",
        "the deepcopy's output is .*",
    ),
}


@pytest.mark.parametrize("layer, reference, inputs, row, sentence", BUGS.values(), ids=BUGS.keys())
def test_a_planted_bug_is_caught_named_and_shown_in_two_lines(layer, reference, inputs, row, sentence, capsys):
    report = mg.check_backward(layer, reference, *inputs(), skip=CHECKS.keys() - {row})
    assert not report.ok
    check = report.failed[row]
    assert re.fullmatch(sentence, check.detail), check.detail
    with pytest.raises(AssertionError, match="The backward pass failed 1 of 1 checks"):
        report.assert_ok()
    first, *rest = check.reproduction.splitlines()
    function = getattr(layer, "apply", layer) if isinstance(layer, type) else layer
    namespace = {"torch": torch, "layer": function, "reference": reference}
    exec(first, namespace)
    assert len([line for line in rest if not line.startswith("#")]) == 1
    try:
        exec("\n".join(rest), namespace)
        assert capsys.readouterr().out
    except RuntimeError as error:  # some bugs show themselves by an error
        assert str(error)


def test_a_wrong_gradient_is_shown_first():
    report = mg.check_backward(MeanOverBatch, F.linear, *rectangular(), skip=["torch.compile"])
    assert len(report.failed) > 3
    lines = str(report).splitlines()
    assert [line for line in lines if line.startswith("To see")] == ["To see 'gradient' fail:"]
    assert "Other checks compare with the same numbers: mend 'gradient' first." in lines


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


def once(x):
    return Once.apply(x)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * (1 - ctx.saved_tensors[0] ** 2)


CORRECT = {
    "nn.Linear": (nn.Linear(4, 3), nn.Linear(4, 3), lambda: numbers((5, 4))),
    "linear by hand": (Linear, F.linear, rectangular),
    "complex linear": (Linear, F.linear, lambda: numbers((5, 4), (3, 4), (3,), dtype=torch.complex64)),
    "LayerNorm": (nn.LayerNorm(4), nn.LayerNorm(4), lambda: numbers((5, 4))),
    "SwiGLU": (SwiGLU(), SwiGLU(), lambda: numbers((5, 4))),
    "SwiGLU by hand": (SwiGLUByHand, lambda g, u: F.silu(g) * u, lambda: numbers((5, 4), (5, 4))),
    "embedding": (nn.Embedding(7, 3), nn.Embedding(7, 3), lambda: [torch.randint(7, (5,))]),
    "convolution": (nn.Conv2d(1, 2, 3), F.conv2d, lambda: numbers((2, 1, 5, 5))),
    "attention": (Attention(), Attention(), lambda: numbers((2, 3, 4))),
    "batch norm": (nn.BatchNorm1d(4), nn.BatchNorm1d(4), lambda: numbers((5, 4))),
    "dropout": (nn.Dropout(0.5), nn.Dropout(0.5), lambda: numbers((5, 4))),
    "cross entropy": (F.cross_entropy, F.cross_entropy, lambda: [*numbers((5, 4)), torch.randint(4, (5,))]),
    "LSTM cell": (nn.LSTMCell(4, 3), nn.LSTMCell(4, 3), lambda: numbers((5, 4))),
    "not twice differentiable": (once, torch.tanh, lambda: numbers((5, 4))),
    "residual block": (lambda x: x + F.relu(x), lambda x: x + F.relu(x), lambda: numbers((5, 4))),
    "float64": (Linear, F.linear, lambda: numbers((5, 4), (3, 4), (3,), dtype=torch.float64)),
    "bfloat16": (Linear, F.linear, lambda: numbers((5, 4), (3, 4), (3,), dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("layer, reference, inputs", CORRECT.values(), ids=CORRECT.keys())
def test_no_false_alarm(layer, reference, inputs):
    report = mg.check_backward(layer, reference, *inputs(), skip=["torch.compile"])
    assert report.ok, report
    report.assert_ok()


OURS = {
    **{
        f"Dense, {name}": (
            mg.Dense(4, 3, activation=name),
            lambda x, w, b, sigma=activation: sigma.value(F.linear(x, w, b)),
            lambda: numbers((5, 4)),
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
        lambda: numbers((5, 4)),
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
    assert report.ok, report
    passed = {check.name for check in report if check.status == "passed"}
    refused = {
        "complex",
        "cuda",
        "copies",
        "autocast",
        "more axes",
        "fewer axes",
        "empty batch",
    }  # some by the reference too
    assert passed >= CHECKS.keys() - refused - {"torch.compile"}, report


def test_compiled_backward_is_checked():
    assert (
        mg.check_backward(Linear, F.linear, *rectangular(), skip=CHECKS.keys() - {"torch.compile"})[0].status
        == "passed"
    )

    def breaks(x):
        torch._dynamo.graph_break()
        return torch.sin(x)

    check = mg.check_backward(breaks, torch.sin, torch.randn(3), skip=CHECKS.keys() - {"torch.compile"})[0]
    assert check.status == "not supported"


def test_nothing_of_the_callers_is_changed():
    layer, x = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), torch.randn(5, 4, requires_grad=True)
    before, value = {k: v.clone() for k, v in layer.state_dict().items()}, x.detach().clone()
    state = torch.random.get_rng_state()
    mg.check_backward(layer, layer, x, skip=["torch.compile"]).assert_ok()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(x, value) and x.grad is None and x._version == 0
    assert all(p.grad is None for p in layer.parameters())


def test_the_table_shows_each_row_and_how_to_see_a_failure():
    report = mg.check_backward(
        WrongSign, torch.cos, torch.randn(2), skip=CHECKS.keys() - {"output", "gradient", "cuda"}
    )
    lines = str(report).splitlines()
    assert lines[0] == "output    passed         as the reference's"
    assert lines[1] == "gradient  failed         the gradient by input is -1 times what it should be: the sign is wrong"
    assert lines[4:] == [
        "To see 'gradient' fail:",
        "    inputs = [torch.randn((2,), dtype=torch.float32, requires_grad=True)]; "
        "wanted = [*(x for x in inputs if x.requires_grad)]",
        "    for f in (layer, reference): print(torch.autograd.grad(f(*inputs).abs().square().sum(), wanted))",
        "",
        f"1 passed, 1 failed, {0 if torch.cuda.is_available() else 1} not supported.",
    ]


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
            "gradcheck, gradgradcheck, complex, non-contiguous, expanded, upstream layout, empty batch, more axes, fewer axes, "
            "in place, memory leak, saved tensors, determinism, autocast, torch.compile, vmap, jvp, copies, cuda.",
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
