"""Layers that are wrong under torch.func: check_backward catches and names them."""

import pytest
import torch
from torch.nn import functional as F

import manualgrad as mg
from manualgrad.conformance.check_backward import CHECKS
from tests.conformance.hand_written import Bug, Linear, Square, expect_caught, one, rectangular


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


class CrashingTangent(WrongTangent):
    @staticmethod
    def jvp(ctx, t):
        return t.view(-1, 7)


class WrongRule(torch.autograd.Function):
    """Its rule for vmap sums the bias' gradient over the samples too."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x, scale):
        return x * scale

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        x, scale = ctx.saved_tensors
        return g * scale, g * x

    @staticmethod
    def vmap(info, in_dims, x, scale):
        return x * scale.mean(0), 0


class CrashingRule(WrongRule):
    @staticmethod
    def vmap(info, in_dims, x, scale):
        return x.view(-1, 7) * scale, 0


def pair():
    return [*one(), *one()]


BUGS = {
    "wrong tangent": Bug(
        WrongTangent,
        "jvp",
        "the tangent of output 0 is 0.6667 times what it should be",
        reference=lambda x: x**3,
        inputs=one,
    ),
    "the tangent crashes": Bug(
        CrashingTangent,
        "jvp",
        r"RuntimeError: shape '\[-1, 7\]' is invalid for input of size 20; the reference works. .*",
        reference=lambda x: x**3,
        inputs=one,
    ),
    "a wrong rule for vmap": Bug(
        WrongRule, "vmap", "mapped, tensor 0 is wrong by .*", reference=torch.mul, inputs=pair
    ),
    "the rule for vmap crashes": Bug(
        CrashingRule,
        "vmap",
        r"RuntimeError: shape '\[-1, 7\]' .*; the reference works. .*",
        reference=torch.mul,
        inputs=pair,
    ),
}


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS.keys())
def test_a_planted_bug_is_caught_named_and_shown_in_two_lines(bug: Bug) -> None:
    expect_caught(bug)


class WithContext(torch.autograd.Function):
    """As most are written: without setup_context."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0].conj()


class WithoutRule(Square):
    generate_vmap_rule = False


def reads_a_number(x):
    return x**2 if x.sum().item() > -1e9 else x


@pytest.mark.parametrize(
    "layer, row, words",
    [
        (WithContext, "vmap", "In order to use an autograd.Function with functorch transforms"),
        (WithContext, "jvp", "In order to use an autograd.Function with functorch transforms"),
        (WithoutRule, "vmap", "You tried to vmap over WithoutRule, but it does not have vmap support"),
        (Square, "jvp", "You must implement the jvp function for custom autograd.Function"),
        (reads_a_number, "vmap", "vmap: It looks like you're"),
    ],
)
def test_what_pytorch_says_a_function_lacks_is_not_supported(layer, row, words):
    report = mg.check_backward(layer, torch.square, *one(), skip=CHECKS.keys() - {row})
    report.assert_ok()
    assert words in report.not_supported[row].detail
    with pytest.raises(AssertionError, match=f"^The backward pass must do more: {row} is not supported"):
        report.assert_ok(strict=True)


def test_what_the_reference_refuses_too_is_not_applicable():
    (check,) = mg.check_backward(reads_a_number, reads_a_number, *one(), skip=CHECKS.keys() - {"vmap"})
    assert (check.status, check.detail) == ("not applicable", "nor by the reference")
    mg.check_backward(Linear, F.linear, *rectangular(), skip=CHECKS.keys() - {"vmap"}).assert_ok(require="vmap")
