"""Layers that break, or lie, under autocast and torch.compile: check_backward catches and names them."""

import pytest
import torch
from torch.nn import functional as F

import manualgrad as mg
from manualgrad.conformance.check_backward import CHECKS
from tests.conformance.hand_written import Bug, Linear, Square, expect_caught, one, rectangular


class KeepsFloat32(Linear):
    """Saves the weight as it came, though autocast has computed in bfloat16: the dtypes do not meet in backward."""

    @staticmethod
    def forward(x, w, b):
        return torch.addmm(b, x, w.t())

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w if w is not None else None, g.t() @ x if x is not None else None, g.sum(0)


class NarrowUnderAutocast(Square):
    """Rounds to bfloat16 what autocast leaves in float32."""

    @staticmethod
    def forward(x):
        return x.to(torch.bfloat16) ** 2 if torch.is_autocast_enabled("cpu") else x**2


class CompiledApart(Square):
    """Another formula where it is compiled, as a hand-written kernel might have."""

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return (3 if torch.compiler.is_compiling() else 2) * g * x


class CrashesInTheCompiler(Square):
    @staticmethod
    def forward(x):
        return x**2 + torch.zeros(3) if torch.compiler.is_compiling() else x**2


BUGS = {
    "autocast crashes": Bug(
        KeepsFloat32,
        "autocast",
        "RuntimeError: expected m1 and m2 to have the same dtype, .*; the reference works. Support it, .*",
    ),
    "autocast, a narrower output": Bug(
        NarrowUnderAutocast,
        "autocast",
        "the output is torch.bfloat16, the reference's is torch.float32",
        reference=torch.square,
        inputs=one,
    ),
    "compiled to another formula": Bug(
        CompiledApart,
        "torch.compile",
        "compiled, the gradient by input is 1.5 times what it should be",
        reference=torch.square,
        inputs=one,
    ),
    "the compiler crashes": Bug(
        CrashesInTheCompiler,
        "torch.compile",
        ".*; the reference works. Support it, .*",
        reference=torch.square,
        inputs=one,
    ),
}


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS.keys())
def test_a_planted_bug_is_caught_named_and_shown_in_two_lines(bug: Bug) -> None:
    torch.compiler.reset()
    expect_caught(bug)


def breaks(x):
    torch._dynamo.graph_break()
    return torch.sin(x)


def test_a_graph_break_is_a_refusal_that_can_be_forbidden():
    skip = CHECKS.keys() - {"torch.compile"}
    mg.check_backward(Linear, F.linear, *rectangular(), skip=skip).assert_ok(require=("torch.compile",))
    report = mg.check_backward(breaks, torch.sin, torch.randn(3), skip=skip)
    report.assert_ok()
    with pytest.raises(AssertionError, match="^The backward pass must do more: torch.compile is not supported"):
        report.assert_ok(require=("torch.compile",))
    (check,) = mg.check_backward(breaks, breaks, torch.randn(3), skip=skip)
    assert (check.status, check.detail) == ("not applicable", "nor by the reference")
