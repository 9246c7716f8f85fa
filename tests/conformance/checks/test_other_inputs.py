"""Layers that are right for the numbers given and wrong for others; and right ones, whose true gradients are zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import manualgrad as mg
from manualgrad.conformance.check_backward import CHECKS
from tests.conformance.hand_written import Bug, Linear, expect_caught, one, rectangular


def wrong_if(condition: Callable[[Tensor, Tensor], bool], factor: float = 1.1) -> Any:
    """A linear layer whose gradient by x is wrong under a condition on x and w."""

    class Wrong(Linear):
        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs[:2])

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            by_x, by_w, by_b = Linear.backward(ctx, g)
            return by_x * factor if by_x is not None and condition(x, w) else by_x, by_w, by_b

    return Wrong


BUGS = {
    "large |x|": (lambda x, w: bool(x.abs().max() > 50), "very large numbers"),
    "fairly large |x|": (lambda x, w: bool(4 < x.abs().max() < 100), "large numbers"),
    "more than 64 rows": (lambda x, w: x.dim() == 2 and len(x) > 64, "more than 64 rows"),
    "all x < 0": (lambda x, w: bool((x < 0).all()), "negative numbers"),
    "all x > 0": (lambda x, w: bool((x > 0).all()), "positive numbers"),
    "square weights": (lambda x, w: w.size(0) == w.size(1), "square weights"),
}


@pytest.mark.parametrize("condition, where", BUGS.values(), ids=BUGS.keys())
def test_a_bug_that_the_given_numbers_do_not_show(condition, where) -> None:
    layer, skip = wrong_if(condition), CHECKS.keys() - {"output", "gradient"}
    mg.check_backward(layer, F.linear, *rectangular(), skip=skip).assert_ok()
    sentence = rf"with {where}, the gradient by input\[0\] is 1.1 times what it should be"
    expect_caught(Bug(layer, "other inputs", sentence, right=Linear))


ZERO = {
    "softmax": nn.Softmax(-1),
    "log_softmax": nn.LogSoftmax(-1),
    "LayerNorm": nn.LayerNorm(4),
    "LayerNorm without weights": nn.LayerNorm(4, elementwise_affine=False),
    "BatchNorm": nn.BatchNorm1d(4),
    "GroupNorm": nn.GroupNorm(2, 4),
    "mean of centred": lambda x: x - x.mean(-1, keepdim=True),
}


@pytest.mark.parametrize("layer", ZERO.values(), ids=ZERO.keys())
def test_a_true_gradient_of_zero_is_no_failure(layer) -> None:
    """The expanded upstream gradient is constant, and these layers do not see constants."""
    for seed in range(5):
        torch.manual_seed(seed)
        skip = CHECKS.keys() - {"gradient", "upstream layout", "other inputs", "autocast"}
        report = mg.check_backward(layer, layer, *one(), skip=skip)
        report.assert_ok()


class SoftmaxWithoutSum(torch.autograd.Function):
    """Forgets what makes the gradient of a constant zero."""

    @staticmethod
    def forward(ctx, x):
        p = torch.softmax(x, -1)
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


def test_a_gradient_that_is_not_zero_there_is_still_a_failure() -> None:
    report = mg.check_backward(SoftmaxWithoutSum, nn.Softmax(-1), *one(), skip=CHECKS.keys() - {"upstream layout"})
    assert "upstream layout" in report.failed


class WrongInFloat32(Linear):
    @staticmethod
    def backward(ctx, g):
        by_x, by_w, by_b = Linear.backward(ctx, g)
        return by_x, by_w if by_w is None or g.dtype != torch.float32 else 1.1 * by_w, by_b


@pytest.mark.parametrize("seed", range(12))
def test_one_upstream_gradient_for_all_dtypes(seed: int) -> None:
    """In 3 of these seeds the error passed for rounding, and a right layer of 20 outputs failed under autocast."""
    torch.manual_seed(seed)
    report = mg.check_backward(WrongInFloat32, F.linear, *rectangular(), skip=CHECKS.keys() - {"gradient"})
    assert "gradient" in report.failed
    right = [torch.randn(6, 12), torch.randn(20, 12), torch.randn(20)]
    mg.check_backward(F.linear, F.linear, *right, skip=CHECKS.keys() - {"autocast", "gradient"}).assert_ok()
