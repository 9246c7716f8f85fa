"""One kernel of a recording, with the tensors that it runs on: how Python calls it, and how TorchScript writes it down.

Each is called by `call.function(*call.args, **call.kwargs)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manualgrad.train_step.recording.traced_number import Formula, Options


aten = torch.ops.aten

# Python's own bindings parse their arguments faster than the dispatcher's generic ones.
_BINDINGS: dict[Any, Callable[..., Any]] = {
    aten.addmm.out: torch.addmm,
    aten.addmm_.default: Tensor.addmm_,
    aten.addcmul_.default: Tensor.addcmul_,
    aten.baddbmm.out: torch.baddbmm,
    aten.bmm.out: torch.bmm,
    aten.mm.out: torch.mm,
    aten.sigmoid.out: torch.sigmoid,
    aten.tanh.out: torch.tanh,
    aten.add.out: torch.add,
    aten.add_.Tensor: Tensor.add_,
    aten.sub.out: torch.sub,
    aten.clamp_min.out: torch.clamp_min,
    aten.mul.out: torch.mul,
    aten.mul_.Tensor: Tensor.mul_,
    aten.div.out: torch.div,
    aten.sum.IntList_out: torch.sum,
    aten.copy_.default: Tensor.copy_,
}
# The dispatcher would make a tensor of a Python number here, anew in every replay.
_ARITHMETIC = {aten.add.out, aten.sub.out, aten.mul.out, aten.mul_.Tensor, aten.div.out, aten.div_.Tensor}


class KernelCall:
    """A kernel that writes into given memory: in place, or by its form with `out`.

    Args:
        operation: the overload, such as `aten.mm.out`.
        args, kwargs: what it is called with.
        formula_of: for a float, how it follows from an optimizer's options, or None.
    """

    def __init__(
        self, operation: Any, args: tuple, kwargs: dict[str, Any], formula_of: Callable[[Any], Formula | None]
    ) -> None:
        self._operation, self.args = _normalised(operation, args)
        self.kwargs = dict(kwargs)
        self.function = _BINDINGS.get(self._operation) or getattr(self._operation, "_op", self._operation)
        # Where each number lies that the options decide: in args, in kwargs, or in a tensor made of it.
        self._numbers: list[tuple[Any, Any, Formula]] = []
        places: list[tuple[Any, dict]] = [(self.args, dict(enumerate(args))), (self.kwargs, kwargs)]
        for holder, given in places:
            for key, value in given.items():
                if (formula := formula_of(value)) is not None:
                    is_tensor = isinstance(holder[key], Tensor)
                    self._numbers.append((holder[key], ..., formula) if is_tensor else (holder, key, formula))

    def set_numbers(self, options: Options) -> None:
        """Let the numbers follow the options."""
        for holder, key, formula in self._numbers:
            holder[key] = formula(options)

    @property
    def made_of_numbers(self) -> list[tuple[Tensor, Formula]]:
        """The tensors that stand for numbers which the options decide."""
        return [(holder, formula) for holder, _, formula in self._numbers if isinstance(holder, Tensor)]

    def as_text(self, name: Callable[[Any], str]) -> str:
        """As a line of TorchScript. `name` gives the name or the literal of an argument."""
        formulas = {(id(holder), key): formula for holder, key, formula in self._numbers}
        values = [name(formulas.get((id(self.args), i), x)) for i, x in enumerate(self.args)]
        values += [f"{key}={name(formulas.get((id(self.kwargs), key), x))}" for key, x in self.kwargs.items()]
        return f"torch.ops.aten.{self._operation._overloadpacket.__name__}({', '.join(values)})"


def _normalised(operation: Any, args: tuple) -> tuple[Any, list[Any]]:
    """The same kernel in the form that is cheapest to call again and again."""
    if operation is aten.sum.out:
        return aten.sum.IntList_out, [*args, None]  # over no axis in particular: all
    if operation in _ARITHMETIC and not isinstance(args[1], Tensor) and args[0].is_floating_point():
        x, number, *rest = args
        return operation, [x, torch.tensor(number, dtype=x.dtype, device=x.device), *rest]
    return operation, list(args)


class KernelCallAndCopy:
    """A kernel without a form that writes into given memory: its results are copied there."""

    def __init__(self, operation: Any, args: tuple, kwargs: dict[str, Any], buffers: list[Tensor]) -> None:
        self._operation, self._buffers = operation, buffers
        self.function, self.args, self.kwargs = self._run, args, kwargs

    def _run(self, *args: Any, **kwargs: Any) -> None:
        result = self._operation(*args, **kwargs)
        for buffer, tensor in zip(self._buffers, [result] if isinstance(result, Tensor) else result, strict=True):
            buffer.copy_(tensor)

    def set_numbers(self, options: Options) -> None:
        """There are none in it."""


class LiveCall:
    """A Python function that is called anew, because it may decide otherwise next time; its result is copied."""

    def __init__(self, function: Callable[..., Tensor], args: tuple, buffer: Tensor) -> None:
        self._function, self._buffer = function, buffer
        self.function, self.args, self.kwargs = self._run, args, dict[str, Any]()

    def _run(self, *args: Any) -> None:
        with torch.inference_mode(False), torch.no_grad():  # as while recording: it may differentiate something itself
            self._buffer.copy_(self._function(*args))

    def set_numbers(self, options: Options) -> None:
        """It reads what it needs by itself."""


Call = KernelCall | KernelCallAndCopy | LiveCall
