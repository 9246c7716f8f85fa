"""Run a training step on copies: tensors without history, random states restored afterwards, and the graph that it made."""

import copy
import random
import re
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from threading import Lock, RLock
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def each_tensor(function: Callable[[Tensor], Tensor], x: Any) -> Any:
    """`function` of every tensor in `x`, through tuples, lists and dicts."""
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(each_tensor(function, item) for item in x))
    if isinstance(x, tuple | list):
        return type(x)(each_tensor(function, item) for item in x)
    if isinstance(x, dict):
        return {key: each_tensor(function, item) for key, item in x.items()}
    return x


def copied(x: Tensor) -> Tensor:
    """A copy without history. Outside of inference mode it is a plain tensor, even if `x` was made inside."""
    return x.detach().clone()


class CannotCopyError(TypeError):
    """A training step cannot be run on copies, since a part of its module cannot be copied."""


class _Uncopied:
    """Stands in a copy for what cannot be copied. Raises where the step uses it: sharing it would change the real training."""

    def __init__(self, kind: str, reason: Exception) -> None:
        vars(self).update(kind=kind, reason=reason)

    def _refuse(self, *arguments: Any, **keywords: Any) -> Any:
        kind, reason = vars(self)["kind"], vars(self)["reason"]
        raise CannotCopyError(
            f"The step uses a `{kind}` that the module keeps and that cannot be copied ({in_brief(reason)})."
        )

    __getattr__ = __call__ = __iter__ = __next__ = __enter__ = __getitem__ = __len__ = __bool__ = _refuse

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Uncopied":
        return self


def deep_copied(module: ModuleT, memo: dict[int, Any] | None = None) -> ModuleT:
    """`copy.deepcopy`, also of modules that keep what it refuses. In the copy tensors with history have none, locks are new
    ones, and anything else that cannot be copied is replaced by what raises CannotCopyError where the step uses it.

    Raises CannotCopyError where the module itself refuses to be copied, as sharded ones do.
    """
    memo = {} if memo is None else memo
    attempt = dict(memo)
    try:
        copied_module = copy.deepcopy(module, attempt)
    except Exception:
        _replace_uncopied(module, memo)
        attempt = dict(memo)
        try:
            copied_module = copy.deepcopy(module, attempt)
        except Exception as error:
            raise CannotCopyError(f"{type(module).__name__} cannot be copied ({in_brief(error)}).") from error
    kept_alive = attempt.pop(id(attempt), [])  # under an id that another dict may have after this one
    memo |= attempt
    memo.setdefault(id(memo), []).extend(kept_alive)
    return copied_module


_NEW_LOCK: dict[type, Callable[[], Any]] = {type(Lock()): Lock, type(RLock()): RLock}


def _replace_uncopied(module: nn.Module, memo: dict[int, Any]) -> None:
    """Put into `memo` what stands in the copy for each thing that the module keeps and that cannot be copied."""
    whole: list[Any] = []
    waiting, seen = [module], {id(module)}
    while waiting:
        x = waiting.pop()
        parts = _parts(x)
        if isinstance(x, Tensor):
            if not x.is_leaf:
                memo[id(x)] = copied(x)
        elif type(x) in _NEW_LOCK:
            memo[id(x)] = _NEW_LOCK[type(x)]()
        elif parts is None:
            _replace_unless_copied(x, memo)
        else:
            whole.append(x)
            new = [part for part in parts if id(part) not in seen and id(part) not in memo]
            seen.update(map(id, new))
            waiting += new
    for x in whole:  # only now: they contain one another, and the module
        if not isinstance(x, nn.Module | MethodType | dict | list | tuple):
            _replace_unless_copied(x, memo)


def _replace_unless_copied(x: Any, memo: dict[int, Any]) -> None:
    try:
        copy.deepcopy(x, dict(memo))
    except Exception as error:
        memo[id(x)] = _Uncopied(type(x).__name__, error)


def _parts(x: Any) -> Iterable[Any] | None:
    """What a deep copy of `x` would copy too; None where nothing is known of that."""
    if isinstance(x, dict):
        return x.values()
    if isinstance(x, list | tuple | set | frozenset | deque):
        return x
    if isinstance(x, MethodType):
        return [x.__self__]
    if isinstance(x, Tensor | type | ModuleType | FunctionType) or not hasattr(x, "__dict__"):
        return None
    return [part for name, part in vars(x).items() if name not in ("_trainer", "_fabric")]  # Lightning copies neither


def check_loss_function(loss: Any, caller: str) -> None:
    """Raises TypeError unless `loss` can be called with outputs and targets. A loss's class cannot: it makes an instance."""
    came, advice = repr(loss), "Pass for example mg.QuadraticLoss()."
    if isinstance(loss, Tensor):
        came = f"a tensor of shape {tuple(loss.shape)}"
        advice = f"The order is {caller}(model, loss, inputs, targets)."
    elif isinstance(loss, type):
        came = f"the class {loss.__name__}"
        is_function = issubclass(loss, torch.autograd.Function)
        advice = f"Pass {loss.__name__}.apply." if is_function else f"Make an instance: {loss.__name__}()."
    elif callable(loss):
        return
    raise TypeError(f"{caller} expected `loss` to be a function of outputs and targets, got {came}. {advice}")


def checked_loss(value: Any, caller: str) -> Tensor:
    """The loss as it is. Raises ValueError unless it is a real 0-dimensional tensor."""
    if not isinstance(value, Tensor) or value.dim() != 0 or value.is_complex():
        came = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{caller} expected the loss to be a real 0-dimensional tensor, got {came}. Average it, for example with .mean()."
        )
    return value


def graph_nodes(results: Iterable[Tensor]) -> Iterator[Any]:
    """Every node of the graph that a backward pass from `results` would go through, once each."""
    waiting, seen = [x.grad_fn for x in results], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
            yield node


def random_states(devices: Collection[torch.device] = ()) -> dict[str, Any]:
    """The states of torch's generators on the CPU and on `devices`, of Python's and, if it has been imported, of NumPy's:
    tensors and plain values alone, which `torch.load(weights_only=True)` reads."""
    states = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "devices": [torch.get_device_module(device).get_rng_state(device) for device in devices],
    }
    if numpy_random := sys.modules.get("numpy.random"):
        algorithm, keys, *rest = numpy_random.get_state()
        states["numpy"] = (algorithm, keys.tolist(), *rest)
    return states


def set_random_states(states: dict[str, Any], devices: Collection[torch.device] = ()) -> None:
    """Back to what `random_states` has returned. A generator raises its own error for a state that is not its own."""
    torch.set_rng_state(states["torch"].cpu())
    random.setstate(states["python"])
    if "numpy" in states:
        sys.modules["numpy.random"].set_state(states["numpy"])
    for device, state in zip(devices, states["devices"], strict=False):  # fewer if a checkpoint was made without a GPU
        torch.get_device_module(device).set_rng_state(state.cpu(), device)


class RandomStates:
    """Restores all random states on leaving, those of the model's devices included; `rewind` restores them in between."""

    def __init__(self, model: nn.Module) -> None:
        self.devices = {p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}

    def __enter__(self) -> "RandomStates":
        self.states = random_states(self.devices)
        return self

    def rewind(self) -> None:
        set_random_states(self.states, self.devices)

    def __exit__(self, *exception: object) -> None:
        self.rewind()


def in_brief(error: Exception) -> str:
    """The first sentence of an error, cut where it is too long for a table."""
    sentence = re.split(r"\n|(?<=\w)\. ", str(error).strip(), maxsplit=1)[0]
    whole = f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__
    return whole if len(whole) <= 90 else f"{whole[:87]}..."
