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
        self.args, self.kwargs = list(args), dict(kwargs)
        self._numbers: list[tuple[Any, Any, Formula]] = []  # where each number lies that the options decide
        if operation is aten.sum.out:
            operation, self.args = aten.sum.IntList_out, [*self.args, None]  # over no axis in particular: all
        elif operation in _ARITHMETIC and not isinstance(self.args[1], Tensor) and self.args[0].is_floating_point():
            number, like = self.args[1], self.args[0]
            self.args[1] = torch.tensor(number, dtype=like.dtype, device=like.device)
            if (formula := formula_of(number)) is not None:
                self._numbers.append((self.args[1], None, formula))
        for holder in (self.args, self.kwargs):
            for key, value in enumerate(holder) if isinstance(holder, list) else holder.items():
                if (formula := formula_of(value)) is not None:
                    self._numbers.append((holder, key, formula))
        self._operation = operation
        self.function = _BINDINGS.get(operation) or getattr(operation, "_op", operation)

    def set_numbers(self, options: Options) -> None:
        """Let the numbers follow the options."""
        for holder, key, formula in self._numbers:
            if isinstance(holder, Tensor):
                holder.fill_(formula(options))
            else:
                holder[key] = formula(options)

    def as_text(self, name: Callable[[Any], str]) -> str:
        """As a line of TorchScript. `name` gives the name or the literal of an argument."""
        formulas = {(id(holder), key): formula for holder, key, formula in self._numbers}
        values = [name(formulas.get((id(self.args), i), x)) for i, x in enumerate(self.args)]
        values += [f"{key}={name(formulas.get((id(self.kwargs), key), x))}" for key, x in self.kwargs.items()]
        return f"torch.ops.aten.{self._operation._overloadpacket.__name__}({', '.join(values)})"


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
        self.function: Callable[..., Any] = lambda *args: buffer.copy_(function(*args))
        self.args, self.kwargs = args, dict[str, Any]()

    def set_numbers(self, options: Options) -> None:
        """It reads what it needs by itself."""


Call = KernelCall | KernelCallAndCopy | LiveCall
