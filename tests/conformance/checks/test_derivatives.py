"""Wrong derivatives: check_backward catches and names them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import manualgrad as mg
from manualgrad.conformance.check_backward import CHECKS
from tests.conformance.hand_written import Bug, Linear, Square, expect_caught, numbers, one, rectangular, rows_of


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


class KeptAxis(Linear):
    @staticmethod
    def backward(ctx, g):
        return *Linear.backward(ctx, g)[:2], g.sum(0, keepdim=True) if ctx.needs_input_grad[2] else None


class BroadcastBias(Linear):
    """Sums over everything and broadcasts the one number."""

    @staticmethod
    def backward(ctx, g):
        return *Linear.backward(ctx, g)[:2], g.sum().expand(g.size(-1)) if ctx.needs_input_grad[2] else None


class GradientForFrozenInput(Linear):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, rows_of(g).t() @ rows_of(x), rows_of(g).sum(0)


class FrozenInputFails(Linear):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(
            *(t if needed else None for t, needed in zip(inputs[:2], ctx.needs_input_grad[:2], strict=True))
        )


class MissingConjugate(Linear):
    @staticmethod
    def backward(ctx, g):
        x, _ = ctx.saved_tensors
        found = Linear.backward(ctx, g)
        return found[0], rows_of(g).t() @ rows_of(x) if x is not None else None, found[2]


class HalfPrecisionGradient(Linear):
    @staticmethod
    def backward(ctx, g):
        return tuple(x if x is None else x.to(torch.float16) for x in Linear.backward(ctx, g))


class RoundedGradient(Linear):
    @staticmethod
    def backward(ctx, g):
        return tuple(x if x is None else x.to(torch.bfloat16).to(x.dtype) for x in Linear.backward(ctx, g))


class HalfPrecisionOutput(Linear):
    @staticmethod
    def forward(x, w, b):
        return (x @ w.t() + b).to(torch.bfloat16)


class SecondDerivativeZero(torch.autograd.Function):
    """exp, whose backward treats its own output as a constant."""

    @staticmethod
    def forward(ctx, x):
        y = torch.exp(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].detach()


class Constant(Square):
    """Its backward leaves autograd altogether, as NumPy would."""

    @staticmethod
    def backward(ctx, g):
        return (2 * g * ctx.saved_tensors[0].conj()).detach()


class WrongSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.cos(x)

    @staticmethod
    def backward(ctx, g):
        return g * torch.sin(ctx.saved_tensors[0].conj())


class Scaled(nn.Module):
    """A module with a parameter, whose gradient lacks a factor."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, scale):
            ctx.save_for_backward(x, scale)
            return x * scale**2

        @staticmethod
        def backward(ctx, g):
            x, scale = ctx.saved_tensors
            return g * scale**2, (g * x * scale).sum(0)

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5, 2.0, 3.0, -1.0]))

    def forward(self, x):
        return Scaled.Function.apply(x, self.scale)


class TwoOutputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2, x**3

    @staticmethod
    def backward(ctx, g, h):
        (x,) = ctx.saved_tensors
        return 2 * x * g + 2 * x**2 * h


BUGS = {
    "missing transpose": Bug(
        MissingTranspose,
        "gradient",
        r"a gradient has shape \(4, 3\), expected \(3, 4\): a transpose is missing",
    ),
    "missing transpose, square": Bug(
        MissingTranspose,
        "gradient",
        r"the gradient by input\[1\] is the transpose of what it should be: a transpose is missing",
        inputs=lambda: numbers((5, 4), (4, 4), (4,)),
    ),
    "forgotten sum over the batch": Bug(
        UnsummedBias,
        "gradient",
        r"a gradient has shape \(5, 3\), expected \(3,\): a sum over the batch is missing",
        right=Linear,
    ),
    "only the first row": Bug(
        FirstRowOnly,
        "gradient",
        r"the gradient by input\[2\] is wrong by .* entry; right for a batch of one: a sum over the batch is missing",
    ),
    "mean instead of sum": Bug(
        MeanOverBatch,
        "gradient",
        r"the gradient by input\[2\] is 0.2 times what it should be; right for a batch of one: a sum over the batch is missing",
    ),
    "a bias gradient with an axis too many": Bug(
        KeptAxis,
        "gradient",
        r"a gradient has shape \(1, 3\), expected \(3,\): a sum over the batch is missing",
        right=Linear,
    ),
    "a bias gradient broadcast": Bug(
        BroadcastBias, "gradient", r"the gradient by input\[2\] is wrong by .* of its largest entry"
    ),
    "gradient for a frozen input": Bug(
        GradientForFrozenInput,
        "frozen inputs",
        r"a gradient is computed for a frozen input \(input\[1\], input\[2\]\)",
        right=Linear,
    ),
    "frozen input fails": Bug(FrozenInputFails, "frozen inputs", r"with gradients for input\[0\] only: .*"),
    "missing conjugate, complex inputs": Bug(
        MissingConjugate,
        "gradient",
        r"the gradient by input\[1\] is wrong by .*; right for real numbers: a conjugate is missing",
        inputs=lambda: rectangular(torch.complex128),
    ),
    "missing conjugate, real inputs": Bug(
        MissingConjugate,
        "complex",
        r"for complex numbers, the gradient by input\[1\] is wrong by .*; right for real numbers: a conjugate is missing. "
        "Add it, or raise in forward for complex inputs",
    ),
    "gradient in a narrower dtype": Bug(
        HalfPrecisionGradient,
        "gradient",
        "a gradient is torch.float16, expected torch.float32: autograd casts it, but its digits are lost",
        right=Linear,
    ),
    "gradient rounded on the way": Bug(
        RoundedGradient, "gradcheck", "GradcheckError: Jacobian mismatch for output 0 with respect to input .*"
    ),
    "output in a narrower dtype": Bug(
        HalfPrecisionOutput, "output", "the output is torch.bfloat16, expected torch.float32"
    ),
    "wrong second derivative": Bug(
        SecondDerivativeZero,
        "gradgradcheck",
        "the second derivative by input is 0 where it should not be. If backward cannot be differentiated: "
        "@once_differentiable says so",
        reference=torch.exp,
        inputs=one,
    ),
    "second derivative a silent constant": Bug(
        Constant,
        "gradgradcheck",
        "the second derivative by input is 0 where it should not be. If backward cannot be differentiated: "
        "@once_differentiable says so",
        reference=torch.square,
        inputs=one,
    ),
    "wrong sign": Bug(
        WrongSign,
        "gradient",
        "the gradient by input is -1 times what it should be: the sign is wrong",
        reference=torch.cos,
        inputs=one,
    ),
    "a module's parameter": Bug(
        Scaled(),
        "gradient",
        "the gradient by scale is 0.5 times what it should be",
        reference=lambda x, scale: x * scale**2,
        inputs=one,
        right=mg.Dense(4, 4, bias=False),
    ),
    "one of two outputs": Bug(
        TwoOutputs,
        "gradient",
        "the gradient by input is wrong by .* of its largest entry",
        reference=lambda x: (x**2, x**3),
        inputs=one,
    ),
}


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS.keys())
def test_a_planted_bug_is_caught_named_and_shown_in_two_lines(bug: Bug) -> None:
    expect_caught(bug)


def test_a_wrong_gradient_is_shown_first():
    report = mg.check_backward(MeanOverBatch, F.linear, *rectangular(), skip=["torch.compile"])
    assert len(report.failed) > 3
    lines = str(report).splitlines()
    assert [line for line in lines if line.startswith("To see")] == ["To see 'gradient' fail:"]
    assert lines[0] == "Mend 'gradient' first: other checks compare with the same numbers."


class RealOnly(Square):
    @staticmethod
    def forward(x):
        if x.is_complex():
            raise TypeError("RealOnly expected real numbers")
        return x**2


class Once(Square):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return Square.backward(ctx, g)


@pytest.mark.parametrize(
    "layer, row, sentence",
    [
        (RealOnly, "complex", "TypeError: RealOnly expected real numbers"),
        (
            Once,
            "gradgradcheck",
            "no second derivative: RuntimeError: trying to differentiate twice a function that was marked with @once_diffe...",
        ),
    ],
)
def test_a_clear_refusal_is_not_supported(layer, row, sentence):
    report = mg.check_backward(layer, torch.square, *one(), skip=CHECKS.keys() - {row})
    report.assert_ok()
    assert report.not_supported[row].detail == sentence
