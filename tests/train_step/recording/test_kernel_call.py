"""A call of a kernel as Python runs it and as TorchScript writes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from manualgrad.train_step.recording.kernel_call import KernelCall


aten = torch.ops.aten
HALF = {0.5: lambda options: options[0][0]}  # what 0.5 stands for


def run(call: KernelCall) -> None:
    call.function(*call.args, **call.kwargs)


def test_a_keyword_follows_the_options() -> None:
    w, g = torch.ones(3), torch.ones(3)
    call = KernelCall(aten.add_.Tensor, (w, g), {"alpha": 0.5}, HALF.get)
    call.set_numbers([(2.0,)])
    run(call)
    assert w.eq(3).all()


def test_a_factor_is_a_tensor_that_follows_the_options() -> None:
    v = torch.ones(3, dtype=torch.float64)
    call = KernelCall(aten.mul_.Tensor, (v, 0.5), {}, HALF.get)
    held = call.args[1]
    assert held.dtype == torch.float64 and held.item() == 0.5
    call.set_numbers([(0.1,)])
    run(call)
    assert call.args[1] is held and v.eq(0.1).all()


def test_a_sum_over_everything_is_one_over_no_axis_in_particular() -> None:
    x, total = torch.arange(6.0).view(2, 3), torch.empty(())
    run(KernelCall(aten.sum.out, (x,), {"out": total}, HALF.get))
    assert total == 15


@pytest.mark.parametrize(
    ("operation", "args", "kwargs", "text"),
    [
        (aten.mm.out, ("a", "b"), {"out": "c"}, "torch.ops.aten.mm(<a>, <b>, out=<c>)"),
        (aten.add_.Tensor, ("w", "g"), {"alpha": 0.25}, "torch.ops.aten.add_(<w>, <g>, alpha=<0.25>)"),
        (aten.add_.Tensor, ("w", "g"), {"alpha": 0.5}, "torch.ops.aten.add_(<w>, <g>, alpha=<formula>)"),
    ],
)
def test_the_text_names_arguments_and_formulas(operation: Any, args: tuple, kwargs: dict, text: str) -> None:
    tensors = {name: torch.ones(2, 2) for name in ("a", "b", "c", "w", "g")}
    names = {id(tensor): name for name, tensor in tensors.items()}
    call = KernelCall(
        operation, tuple(tensors[x] for x in args), {k: tensors.get(x, x) for k, x in kwargs.items()}, HALF.get
    )
    assert call.as_text(lambda x: f"<{'formula' if callable(x) else names.get(id(x), x)}>") == text
