"""Record the kernels of a computation once, then replay them on the same memory: a CUDA graph, for the CPU.

A small net spends its time not in arithmetic but in choosing it: Python, dispatch, allocation. A recording keeps only the
kernels and the tensors they ran on. Replaying it runs them again, in order, every result written where the first one lies.
The code that was recorded stays as it is, pure and readable, and is not run again. On a GPU a CUDA graph does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack, _pop_mode
from torch.utils._pytree import tree_iter

from manualgrad.matrix_products import views_made_once
from manualgrad.train_step.recording.kernel_call import Call, KernelCall, KernelCallAndCopy, LiveCall
from manualgrad.train_step.recording.program import as_partials, run_as_one
from manualgrad.train_step.recording.traced_number import NumberTracer


aten = torch.ops.aten

# Kernels whose result depends on shapes alone: the first result will do, restored where something writes to it.
_CONSTANTS = {
    aten.full,
    aten.full_like,
    aten.ones,
    aten.ones_like,
    aten.new_ones,
    aten.zeros,
    aten.zeros_like,
    aten.new_zeros,
    aten.scalar_tensor,
}
# Kernels that only make room.
_EMPTY = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
# Worth recognising when they come twice: the loss's value and its gradient both begin with a - y.
_COMMON = {aten.sub.Tensor, aten.ne.Scalar}
# Kernels that copy: their forms with `out` would do so twice.
_COPIES = {aten._to_copy.default, aten.clone.default}


def record(function: Callable[..., Any], *arguments: Any, tracer: NumberTracer | None = None) -> tuple[Any, Recording]:
    """function(*arguments), without gradients, and a recording that runs its kernels again on the same memory.

    Args:
        tracer: see `Recording`.
    """
    modes = len(_get_current_dispatch_mode_stack())
    try:
        try:
            with torch.no_grad(), Recording(tracer) as recording, views_made_once():
                return function(*arguments), recording
        finally:  # Ctrl-C within the mode's own __enter__ or __exit__ would leave it there
            _pop_modes_above(modes)
    finally:  # and Ctrl-C in the line above too
        _pop_modes_above(modes)


def _pop_modes_above(depth: int) -> None:
    while len(_get_current_dispatch_mode_stack()) > depth:
        _pop_mode()


def live(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """function(*arguments), and while recording: called anew in every replay, its result copied to where the first one lies.

    A captured CUDA graph cannot do that: there the first call's kernels are what is replayed.
    """
    recordings = [mode for mode in _get_current_dispatch_mode_stack() if isinstance(mode, Recording)]
    return recordings[-1].call_live(function, *arguments) if recordings else function(*arguments)


class Recording(TorchDispatchMode):
    """Inside `with recording:` everything runs as usual and is recorded; `recording()` runs it again.

    What a replay reads and writes is fixed: the tensors seen while recording, which must be neither reallocated nor resized.
    A kernel without a form that writes into given memory is run as it is, and its result copied there. Numbers are fixed
    too, and so is what Python decided by them; a function that may decide otherwise next time goes through `live`.

    Args:
        tracer: knows numbers that are to follow an optimizer's options. Given one, nothing that exists is changed: those
            numbers are stand-ins, and the kernels that write in place are recorded but not run.

    Raises:
        RuntimeError: the recorded code reads a tensor's value on the host, which a replay could not follow.
    """

    def __init__(self, tracer: NumberTracer | None = None) -> None:
        super().__init__()
        self._is_dry = tracer is not None
        self._tracer = tracer or NumberTracer()
        self.calls: list[Call] = []
        self._is_live = False
        self._constants: dict[int, tuple[Tensor, Tensor]] = {}  # by address: a constant, and a copy of it
        # Results that are still true, with their arguments, kept alive.
        self._known: dict[tuple | None, tuple[Any, tuple]] = {}

    def __call__(self) -> None:
        run_as_one(as_partials(self.calls))

    def call_live(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """See `live`."""
        self._is_live = True
        try:
            result = function(*arguments).clone()
        finally:
            self._is_live = False
        self.calls.append(LiveCall(function, arguments, result))
        return result

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if any(kind is not Tensor for kind in types):
            return NotImplemented  # of a FactoredGradient, say: its rules call kernels on plain tensors, which are recorded
        if operation is aten._local_scalar_dense.default and not self._is_live:
            raise RuntimeError(
                "A recording expected code that leaves values on the device, got one that reads a tensor as a Python number. "
                "Call it through `live`."
            )
        if self._is_live:
            return operation(*args, **kwargs)
        key = (operation, *(id(x) if isinstance(x, Tensor) else x for x in args)) if operation in _COMMON else None
        if key in self._known:
            return self._known[key][0]
        if self._is_dry and operation._schema.is_mutable:
            result = kwargs.get("out", args[0]) if operation._schema.returns else None
        else:
            result = operation(*args, **kwargs)
        if operation._schema.is_mutable:
            self._known.clear()
        elif key is not None:
            self._known[key] = result, args
        self._record(operation, args, kwargs, result)
        return result

    def _record(self, operation: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        if operation._schema.is_mutable:
            if torch.Tag.inplace_view not in operation.tags:  # those change a shape, once and for all
                self._restore_constants(operation, args, kwargs)
                self._append(operation, args, kwargs)
            return
        results = [result] if isinstance(result, Tensor) else list(result)
        if operation.is_view or operation._overloadpacket in _EMPTY or _is_alias(results[0], args):
            return
        if operation._overloadpacket in _CONSTANTS:
            self._constants[_address(result)] = result.detach(), result.clone()
            return
        if operation in _COPIES:
            self._append(aten.copy_.default, (result.detach(), args[0]), {})
            return
        if operation is aten.relu.default:  # its form with `out` makes a copy
            operation, args = aten.clamp_min.default, (*args, 0)
        # An alias, because the code may still change the shape of its own tensor in place.
        buffers = [tensor.detach() for tensor in results]
        into, names = _form_with_out(operation)
        if into is not None:
            self._append(into, args, {**kwargs, **dict(zip(names, buffers, strict=True))})
        else:
            self.calls.append(KernelCallAndCopy(operation, args, kwargs, buffers))

    def _restore_constants(self, operation: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before anything else in a replay, if this operation writes to some."""
        for i, argument in enumerate(operation._schema.arguments):
            target = args[i] if i < len(args) else kwargs.get(argument.name)
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(target, Tensor):
                if (constant := self._constants.pop(_address(target), None)) is not None:
                    self.calls.insert(0, KernelCall(aten.copy_.default, constant, {}, self._tracer.find))

    def _append(self, operation: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        self.calls.append(KernelCall(operation, args, kwargs, self._tracer.find))


def _is_alias(result: Tensor, args: tuple) -> bool:
    """Whether the result is memory of an argument: `_unsafe_view`, `contiguous` where nothing is to be done."""
    address = _address(result)
    return address != 0 and any(isinstance(arg, Tensor) and _address(arg) == address for arg in tree_iter(args))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _form_with_out(operation: Any) -> tuple[Any, list[str]]:
    """The overload with the same arguments that writes into given tensors, and what it calls those; or None."""
    expected = [(argument.name, str(argument.type)) for argument in operation._schema.arguments]
    for name in operation._overloadpacket.overloads():
        overload = getattr(operation._overloadpacket, name)
        arguments = overload._schema.arguments
        outs = [argument.name for argument in arguments if argument.is_out]
        if outs and expected == [(a.name, str(a.type)) for a in arguments if not a.is_out]:
            return overload, outs
    return None, []
