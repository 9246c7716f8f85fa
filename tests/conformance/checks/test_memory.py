"""Layers that change, share, keep or leak memory, or do not repeat themselves: check_backward catches and names them."""

import pytest
import torch

from tests.conformance.hand_written import Bug, Linear, expect_caught, one


class MutatedUpstream(Linear):
    @staticmethod
    def backward(ctx, g):
        found = Linear.backward(ctx, g)
        g.mul_(2)
        return found


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


class MutatedIntermediate(torch.autograd.Function):
    """Uses up what it has saved: a second backward pass, as with retain_graph, gets what is left."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(torch.cos(x))
        return torch.sin(x)

    @staticmethod
    def backward(ctx, g):
        return ctx.saved_tensors[0].data.mul_(g)


class Leak(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.y = torch.exp(x)
        return ctx.y

    @staticmethod
    def backward(ctx, g):
        return g * ctx.y


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


def another_number_each_time(x):
    """Whatever the random state."""
    calls.append(None)
    return x * (1 + 1e-3 * len(calls))


BUGS = {
    "mutated upstream gradient": Bug(
        MutatedUpstream, "in place", "backward changes the upstream gradient in place", right=Linear
    ),
    "mutated input": Bug(MutatedInput, "in place", r"forward changes input\[0\] in place", right=Linear),
    "mutated saved input": Bug(MutatedSaved, "in place", r"backward changes input\[0\] in place", right=Linear),
    "mutated saved tensor": Bug(
        MutatedIntermediate,
        "in place",
        "the gradient by input, in a second backward pass, .*: backward changes a saved tensor in place",
        reference=torch.sin,
        inputs=one,
    ),
    "leak through ctx": Bug(
        Leak,
        "memory leak",
        r"\d+ tensors outlive 100 calls: an output kept on ctx or in a list\? Use ctx.save_for_backward",
        reference=torch.exp,
        inputs=one,
    ),
    "tensor on ctx": Bug(
        Leak,
        "saved tensors",
        "ctx.y is a tensor: out of reach of saved_tensors_hooks and checkpointing, and a leak if it is the output. .*",
        reference=torch.exp,
        inputs=one,
    ),
    "leak into a list": Bug(
        remembers, "memory leak", r"\d+ tensors outlive 100 calls: .*", reference=torch.sin, inputs=one
    ),
    "saves too much": Bug(
        Hoarder,
        "saved tensors",
        "320 bytes kept for the backward pass, the reference keeps 0",
        reference=torch.sin,
        inputs=one,
    ),
    "output is a view": Bug(
        Alias, "in place", "the output shares its memory with input", reference=lambda x: x * 1, inputs=one
    ),
    "not deterministic": Bug(
        another_number_each_time,
        "determinism",
        "two runs from the same random state differ",
        reference=lambda x: x * 1.001,
        inputs=one,
    ),
}


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS.keys())
def test_a_planted_bug_is_caught_named_and_shown_in_two_lines(bug: Bug) -> None:
    expect_caught(bug)
