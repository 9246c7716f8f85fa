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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from manualgrad.factored_gradient import FactoredGradient


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

# Python's own bindings parse their arguments faster than the dispatcher's generic ones.
_BINDINGS: dict[Any, Callable[..., Any]] = {
    aten.addmm.out: torch.addmm,
    aten.addmm_.default: Tensor.addmm_,
    aten.addr_.default: Tensor.addr_,
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


_active: list[Recording] = []


def record(
    function: Callable[..., Any], *arguments: Any, device: torch.device, is_pure: bool = False
) -> tuple[Any, Callable[[], None]]:
    """function(*arguments), without gradients, and a function that runs its kernels again on the same memory.

    `is_pure` says that it changes nothing but its results: it may then be run to prepare a CUDA graph.
    """
    with torch.no_grad():
        if device.type == "cuda":
            if is_pure:
                _warm_up(function, *arguments)
            return _capture(function, *arguments)
        with Recording() as recording:
            return function(*arguments), recording.replay


def live(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """function(*arguments), and while recording: called anew in every replay, its result copied to where the first one lies.

    A captured CUDA graph cannot do that: there the first call's kernels are what is replayed.
    """
    return _active[-1].call_live(function, *arguments) if _active else function(*arguments)


def _warm_up(function: Callable[..., Any], *arguments: Any) -> None:
    """Let libraries allocate what they allocate once, which a capture must not see."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function(*arguments)
    torch.cuda.current_stream().wait_stream(stream)


def _capture(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Callable[[], None]]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function(*arguments)
    graph.replay()  # capturing runs nothing
    return result, graph.replay


# Here the dispatcher would make a tensor of a Python number, anew in every replay.
_ARITHMETIC = {aten.add.out, aten.sub.out, aten.mul.out, aten.mul_.Tensor, aten.div.out, aten.div_.Tensor}


class Recording(TorchDispatchMode):
    """Inside `with recording:` everything runs as usual and is recorded; `recording.replay()` runs it again.

    What a replay reads and writes is fixed: the tensors seen while recording, which must be neither reallocated nor resized.
    A kernel without a form that writes into given memory is run as it is, and its result copied there. Numbers are fixed
    too, and so is what Python decided by them; a function that may decide otherwise next time goes through `live`.

    Raises:
        RuntimeError: the recorded code reads a tensor's value on the host, which a replay could not follow.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Callable[..., Any], tuple, dict[str, Any]]] = []
        self._is_live = False
        self._constants: dict[int, tuple[Tensor, Tensor]] = {}  # by address: a constant, and a copy of it
        self._known: dict[
            tuple | None, tuple[Any, tuple]
        ] = {}  # results that are still true, and the arguments, kept alive

    def replay(self) -> None:
        for function, arguments, keywords in self._calls:
            function(*arguments, **keywords)

    def call_live(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """See `live`."""
        self._is_live = True
        try:
            result = function(*arguments).clone()
        finally:
            self._is_live = False
        self._calls.append((lambda: result.copy_(function(*arguments)), (), {}))
        return result

    def __enter__(self) -> Recording:
        _active.append(self)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        _active.pop()
        super().__exit__(*exception)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if FactoredGradient in types:  # its rules call kernels on plain tensors, and those are what to record
            with self:
                return FactoredGradient.__torch_dispatch__(operation, types, args, kwargs)
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
            self._calls.append((Tensor.copy_, (result.detach(), args[0]), {}))
            return
        if operation is aten.relu.default:  # its form with `out` makes a copy
            operation, args = aten.clamp_min.default, (*args, 0)
        # An alias, because the code may still change the shape of its own tensor in place.
        buffers = [tensor.detach() for tensor in results]
        into, names = _form_with_out(operation)
        if into is not None:
            self._append(into, args, {**kwargs, **dict(zip(names, buffers, strict=True))})
        else:
            self._append(_run_and_copy, (operation, args, kwargs, buffers), {})

    def _restore_constants(self, operation: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before anything else in a replay, if this operation writes to some."""
        for i, argument in enumerate(operation._schema.arguments):
            target = args[i] if i < len(args) else kwargs.get(argument.name)
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(target, Tensor):
                if (constant := self._constants.pop(_address(target), None)) is not None:
                    self._calls.insert(0, (Tensor.copy_, constant, {}))

    def _append(self, operation: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        function = _BINDINGS.get(operation) or getattr(operation, "_op", operation)
        if operation is aten.sum.out:
            function, args = torch.sum, (*args, None)  # over no axis in particular: all
        elif operation in _ARITHMETIC and args[0].dtype in (torch.float32, torch.float64):
            args = (args[0], _as_tensor(args[1], args[0]))
        self._calls.append((function, args, kwargs))


def _as_tensor(x: Any, like: Tensor) -> Tensor:
    return x if isinstance(x, Tensor) else torch.tensor(x, dtype=like.dtype, device=like.device)


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


def _run_and_copy(operation: Any, args: tuple, kwargs: dict[str, Any], buffers: list[Tensor]) -> None:
    result = operation(*args, **kwargs)
    for buffer, tensor in zip(buffers, [result] if isinstance(result, Tensor) else result, strict=True):
        buffer.copy_(tensor)
