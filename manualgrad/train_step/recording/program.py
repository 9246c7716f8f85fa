"""A recording as a program of TorchScript: the same kernels on the same memory, run without Python between them.

Python spends a microsecond on every kernel that it calls, as long as a small kernel takes. PyTorch's own interpreter
spends less than half of that. The program is a text of one line for each kernel, which `ReplayProgram.text` shows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from manualgrad.autograd.torch_state import graph_executor
from manualgrad.train_step.recording.kernel_call import Call, KernelCall
from manualgrad.train_step.recording.traced_number import Formula, Options


def replay_of(inputs: Sequence[Tensor], calls: Sequence[Call]) -> ReplayProgram | ReplayByPython:
    """The fastest way to copy new values into `inputs` and then run the calls.

    By Python where a call is a function of Python's own, or where TorchScript is switched off or no longer there.
    """
    try:
        return ReplayProgram(inputs, calls)
    except (NotImplementedError, AttributeError, RuntimeError):
        return ReplayByPython(inputs, calls)


class ReplayByPython:
    """`replay(*tensors)` copies the tensors into `inputs` and runs the calls."""

    def __init__(self, inputs: Sequence[Tensor], calls: Sequence[Call]) -> None:
        self._inputs, self._calls = inputs, calls
        self._kernels = as_partials(calls)

    def __call__(self, *tensors: Tensor) -> None:
        for x, tensor in zip(self._inputs, tensors, strict=True):
            x.copy_(tensor)
        run_as_one(self._kernels)

    def set_numbers(self, options: Options) -> None:
        """Let the numbers follow the options."""
        for call in self._calls:
            call.set_numbers(options)
        self._kernels = as_partials(self._calls)


def as_partials(calls: Sequence[Call]) -> list[partial[Any]]:
    """Each call as a function without arguments."""
    return [partial(call.function, *call.args, **call.kwargs) for call in calls]


def run_as_one(kernels: Iterable[partial[Any]]) -> None:
    """Call them one after the other. Python looks for Ctrl-C between two lines of Python, and there are none between two calls
    of a map: an update that has begun is completed."""
    deque(map(partial.__call__, kernels), maxlen=0)


class _Memory(torch.jit.ScriptModule):
    """The tensors that a program runs on, t0, t1, ..., and lists of them, l0, l1, ...

    A list that the program made itself would be its own affair: TorchScript leaves out what only writes to its elements.
    """

    def __init__(self, tensors: Iterable[Tensor], lists: Iterable[list[Tensor]]) -> None:
        super().__init__()
        for i, tensor in enumerate(tensors):
            self.register_buffer(f"t{i}", tensor.detach())
        for i, members in enumerate(lists):
            setattr(self, f"l{i}", torch.jit.Attribute([x.detach() for x in members], list[Tensor]))


# Of a text and the numbers of tensors and lists. PyTorch keeps whatever it has compiled, so one text is compiled once,
# whatever the batch.
_kinds: dict[tuple[str, int, int], type[_Memory]] = {}
_compiling = Lock()


def _compiled(text: str, tensors: list[Tensor], lists: list[list[Tensor]]) -> Callable[..., None]:
    with _compiling:
        key = text, len(tensors), len(lists)
        kind = _kinds.get(key)
        if kind is None:
            kind = type("_Program", (_Memory,), {})
            kind(tensors, lists).define(text)
            _kinds[key] = kind
        return kind(tensors, lists).forward


class ReplayProgram:
    """`program(*tensors)` copies the tensors into `inputs` and runs the calls.

    Raises:
        NotImplementedError: one of them can only be made from Python.
    """

    def __init__(self, inputs: Sequence[Tensor], calls: Sequence[Call]) -> None:
        self._tensors: dict[int, tuple[int, Tensor]] = {}  # by id: the place in the order, and the tensor, kept alive
        self._lists: list[list[Tensor]] = []
        self._formulas: dict[float | Formula, tuple[int, Formula]] = {}  # of a number, or of itself
        self._numbers: list[float] = []
        self._made_of_numbers: list[tuple[Tensor, Formula]] = []
        arguments = [f"input_{i}" for i in range(len(inputs))]
        lines = [f"{self._name(x)}.copy_({argument})" for x, argument in zip(inputs, arguments, strict=True)]
        for call in calls:
            if not isinstance(call, KernelCall):
                raise NotImplementedError
            lines.append(call.as_text(self._name))
            self._made_of_numbers += call.made_of_numbers
        arguments += [f"number_{i}: float" for i in range(len(self._formulas))]
        self.text = f"def forward(self, {', '.join(arguments)}):\n" + "".join(f"    {line}\n" for line in lines)
        self._run = _compiled(self.text, [tensor for _, tensor in self._tensors.values()], self._lists)
        # What torch.jit.optimized_execution(False) does, for this thread: there is nothing to fuse, and looking takes long.
        self._is_optimizing, self._optimize = graph_executor()

    def __call__(self, *tensors: Tensor) -> None:
        before = self._is_optimizing()
        try:
            self._optimize(False)
            self._run(*tensors, *self._numbers)
        finally:
            self._optimize(before)

    def set_numbers(self, options: Options) -> None:
        """Let the numbers follow the options."""
        self._numbers = [formula(options) for _, formula in self._formulas.values()]
        for tensor, formula in self._made_of_numbers:
            tensor.fill_(formula(options))

    def _name(self, x: Any) -> str:
        """What stands for x in the text. Numbers are arguments, also those that no option decides: a batch size is in some of
        them, and texts that differ are compiled anew."""
        if isinstance(x, Tensor):
            return f"self.t{self._tensors.setdefault(id(x), (len(self._tensors), x))[0]}"
        if isinstance(x, float) and x != 1:
            return f"number_{self._formulas.setdefault(x, (len(self._formulas), lambda options: x))[0]}"
        if callable(x):  # a formula
            return f"number_{self._formulas.setdefault(x, (len(self._formulas), x))[0]}"
        if isinstance(x, (list, tuple)) and x and isinstance(x[0], Tensor):
            self._lists.append(list(x))
            return f"self.l{len(self._lists) - 1}"
        if isinstance(x, (list, tuple)):
            return f"[{', '.join(map(self._name, x))}]"
        if x is None or isinstance(x, (bool, int, float, str)):
            return repr(x)
        raise NotImplementedError
