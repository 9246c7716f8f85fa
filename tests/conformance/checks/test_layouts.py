"""Layers that rely on how their inputs lie in memory, or on their axes: check_backward catches and names them."""

import pytest
import torch
from torch.nn import functional as F

import manualgrad as mg
from manualgrad.conformance.check_backward import CHECKS
from tests.conformance.hand_written import Bug, Linear, Square, expect_caught, one, rectangular


class ContiguousOnly(Square):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return (2 * g.view(-1) * x.reshape(-1)).view(x.shape)


class ReadsMemoryInOrder(Square):
    """Takes the numbers as they lie in memory, whatever the strides say."""

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * g * torch.as_strided(x, x.shape, torch.empty(x.shape).stride())


class WritesToEachRow(Square):
    """Works on a copy that is none where the input is expanded: its rows are one row in memory."""

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        if x.dim() > 1 and x.stride(0) == 0:
            return 2 * g * x.conj() * x.size(0)
        return 2 * g * x.conj()


class ReadsUpstreamInOrder(Square):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * torch.as_strided(g, g.shape, torch.empty(g.shape).stride()) * x.conj() if g.stride(-1) else 0 * x


class NanWithoutRows(Linear):
    """The mean of no rows is nan."""

    @staticmethod
    def backward(ctx, g):
        return *Linear.backward(ctx, g)[:2], g.mean(0) * g.size(0) if ctx.needs_input_grad[2] else None


class ViewWithoutRows(Linear):
    """Zero numbers do not tell how many rows there are."""

    @staticmethod
    def backward(ctx, g):
        return *Linear.backward(ctx, g)[:2], g.reshape(-1, g.size(0)).t().sum(0) if ctx.needs_input_grad[2] else None


class FirstAxisIsTheBatch(Linear):
    @staticmethod
    def backward(ctx, g):
        found = Linear.backward(ctx, g)
        return *found[:2], g.sum(0).reshape(-1, g.size(-1))[0] if ctx.needs_input_grad[2] else None


class TwoAxesOnly(Linear):
    @staticmethod
    def backward(ctx, g):
        return *Linear.backward(ctx, g)[:2], g.t().sum(1) if ctx.needs_input_grad[2] else None


class NeedsTheBatch(Linear):
    @staticmethod
    def forward(x, w, b):
        return torch.addmm(b, x.flatten(0, -2), w.t()).view(*x.shape[:-1], -1)


BUGS = {
    "view of an upstream gradient": Bug(
        ContiguousOnly,
        "upstream layout",
        "with a non-contiguous upstream gradient: view size is not compatible .*",
        reference=torch.square,
        inputs=one,
    ),
    "upstream strides ignored": Bug(
        ReadsUpstreamInOrder,
        "upstream layout",
        "with a non-contiguous upstream gradient, the gradient by input is wrong by .*",
        reference=torch.square,
        inputs=one,
    ),
    "strides ignored": Bug(
        ReadsMemoryInOrder,
        "non-contiguous",
        "with non-contiguous inputs, the gradient by input is wrong by .*",
        reference=torch.square,
        inputs=one,
    ),
    "wrong for expanded inputs": Bug(
        WritesToEachRow,
        "expanded",
        "with expanded inputs, the gradient by input is 5 times what it should be",
        reference=torch.square,
        inputs=one,
    ),
    "nan for an empty batch": Bug(
        NanWithoutRows, "empty batch", r"with an empty batch, the gradient by input\[2\] is not finite"
    ),
    "an empty batch crashes": Bug(
        ViewWithoutRows,
        "empty batch",
        r"with an empty batch: RuntimeError: cannot reshape tensor of 0 elements into shape \[-1, 0\] .*; the reference "
        "works. Support it, or raise an error in forward that says it is not supported.",
    ),
    "wrong with one axis more": Bug(
        FirstAxisIsTheBatch, "more axes", r"with one axis more, the gradient by input\[2\] is wrong by .*"
    ),
    "one axis more crashes": Bug(
        TwoAxesOnly,
        "more axes",
        r"with one axis more: RuntimeError: t\(\) expects a tensor with <= 2 dimensions, but self is 3D; the reference works. .*",
    ),
    "one axis less crashes": Bug(
        NeedsTheBatch,
        "fewer axes",
        "with no batch axis: .*; the reference works. Support it, or raise an error in forward .*",
    ),
}


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS.keys())
def test_a_planted_bug_is_caught_named_and_shown_in_two_lines(bug: Bug) -> None:
    expect_caught(bug)


class RefusesInForward(Linear):
    @staticmethod
    def forward(x, w, b):
        assert x.dim() == 2, "expected x of shape (r, n)"
        return Linear.forward(x, w, b)


class RefusesInBackward(Linear):
    """Too late: the forward pass has taken the input."""

    @staticmethod
    def backward(ctx, g):
        assert g.dim() == 2, "expected g of shape (r, m)"
        return Linear.backward(ctx, g)


def test_a_refusal_counts_in_the_forward_pass_alone():
    skip = CHECKS.keys() - {"more axes"}
    report = mg.check_backward(RefusesInForward, F.linear, *rectangular(), skip=skip)
    report.assert_ok()
    assert report.not_supported["more axes"].detail == (
        "with one axis more: AssertionError: expected x of shape (r, n)"
    )
    report = mg.check_backward(RefusesInBackward, F.linear, *rectangular(), skip=skip)
    assert report.failed["more axes"].detail.startswith(
        "with one axis more: AssertionError: expected g of shape (r, m)"
    )
