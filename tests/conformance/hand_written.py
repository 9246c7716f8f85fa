"""A linear layer by hand that is right, for tests to plant one bug in; and what it means that check_backward catches one."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import manualgrad as mg
from manualgrad.conformance.check_backward import CHECKS


class Linear(torch.autograd.Function):
    """y = x w^T + b."""

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
        rows, x = rows_of(g), x if x is None else rows_of(x)
        return (
            g @ w.conj() if needs_x else None,
            rows.t() @ x.conj() if x is not None else None,
            rows.sum(0) if needs_b else None,
        )


class Square(torch.autograd.Function):
    """y = x^2, one entry at a time."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * g * x.conj()


def rows_of(x: Tensor) -> Tensor:
    return x.reshape(-1, x.size(-1)) if x.numel() else x.reshape(0, x.size(-1))


def numbers(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def rectangular(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x (5, 4), w (3, 4), b (3,)."""
    return numbers((5, 4), (3, 4), (3,), dtype=dtype)


def one() -> list[Tensor]:
    return numbers((5, 4))


@dataclass(frozen=True)
class Bug:
    """What is wrong, the row of the report that says so, and its sentence. `right` is the layer without the bug."""

    layer: Any
    row: str
    sentence: str
    reference: Any = F.linear
    inputs: Callable[[], list[Tensor]] = rectangular
    right: Any = None


def expect_caught(bug: Bug) -> None:
    """The row fails and names the bug; its two lines show it, and show nothing of the kind for what is right."""
    report = mg.check_backward(bug.layer, bug.reference, *bug.inputs(), skip=CHECKS.keys() - {bug.row})
    assert bug.row in report.failed, report
    check = report.failed[bug.row]
    assert re.fullmatch(bug.sentence, check.detail), check.detail
    with pytest.raises(AssertionError, match="The backward pass failed 1 of 1 checks"):
        report.assert_ok()
    assert len(check.reproduction.splitlines()) == 2
    seen = _run(check.reproduction, bug.layer, bug.reference)
    assert seen, "It must print something."
    assert seen != _run(check.reproduction, bug.reference if bug.right is None else bug.right, bug.reference)


def _run(reproduction: str, layer: Any, reference: Any) -> str:
    """What the lines print, or the error that they come to."""
    torch.manual_seed(3)
    layer = layer.apply if isinstance(layer, type) and issubclass(layer, torch.autograd.Function) else layer
    assert not isinstance(layer, type) and (isinstance(layer, nn.Module) or callable(layer))
    with redirect_stdout(io.StringIO()) as printed:
        try:
            exec(reproduction, {"torch": torch, "layer": layer, "reference": reference})
        except Exception as error:  # some bugs show themselves by an error
            return f"{printed.getvalue()}{type(error).__name__}: {error}"
    return printed.getvalue()
