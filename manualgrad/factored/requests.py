"""Whose gradients are to stay factored: those of weights that a living optimizer, or `keep_factored`, has asked for."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from threading import Lock
from typing import TypeVar

from torch import Tensor, nn


ModuleT = TypeVar("ModuleT", bound=nn.Module)

# How many living requests there are for a weight, by its id: a weak reference to a parameter would keep
# `torch.__future__.set_swap_module_params_on_conversion` from swapping it.
_requests: dict[int, int] = {}
_withdrawn: deque[tuple[int, ...]] = (
    deque()
)  # by finalizers, which may run anywhere, also while the table is being changed
_counting = Lock()
_MARK = "_keeps_factors"  # on a weight: wanted for as long as it lives, and by whom


class Request:
    """While this lives, `Dense` hands the weights factored gradients where that saves memory."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.weights = {id(w): w for w in weights}  # held, so that no other tensor is given the id
        _count(self.weights)
        weakref.finalize(self, _withdrawn.append, tuple(self.weights)).atexit = False


def _count(keys: Iterable[int] = ()) -> None:
    """Enter new requests for these, and strike out what was withdrawn."""
    with _counting:
        for key in keys:
            _requests[key] = _requests.get(key, 0) + 1
        while _withdrawn:
            for key in _withdrawn.popleft():
                _requests[key] -= 1
                if not _requests[key]:
                    del _requests[key]


def is_wanted(weight: Tensor) -> bool:
    """Whether a living `Request` names this very tensor, or `keep_factored` has marked it."""
    if _withdrawn:
        _count()
    return id(weight) in _requests or hasattr(weight, _MARK)


def ask_for(weight: Tensor, caller: str) -> None:
    """Mark the weight, unless somebody has: then it is for them to withdraw it."""
    if not hasattr(weight, _MARK):
        setattr(weight, _MARK, caller)


def ask_no_more(weight: Tensor, caller: str | None = None) -> None:
    """Take the mark away; with a caller, only the one that is theirs."""
    if caller is None or getattr(weight, _MARK, None) == caller:
        vars(weight).pop(_MARK, None)


def pass_on_requests(model: nn.Module, copied: nn.Module) -> None:
    """Mark each parameter of a deep copy whose original is wanted factored."""
    for w, copied_w in zip(model.parameters(), copied.parameters(), strict=True):
        if is_wanted(w):
            setattr(copied_w, _MARK, getattr(w, _MARK, "keep_factored"))


def keep_factored(model: ModuleT, keep: bool = True) -> ModuleT:
    """Ask for factored gradients on behalf of an optimizer that does not ask itself: any of `torch.optim`. Returns the model.

    Concerns the weights of the `Dense` layers in it. `keep_factored(model, False)` stops asking, from the next backward pass
    on; a `GradientDescent` that has these weights goes on asking (`factored=False` is its own switch).

    Optimizers that read gradients entry by entry, as those of `torch.optim` do but LBFGS, get them a few rows at a time; fused
    Adam, AdamW, Adagrad and SGD then make nothing of the weight's size. `clip_grad_norm_` and `GradScaler` work on the factors.
    What else needs every entry at once makes the gradient dense, with a `FactorsLostWarning`.

    The weights are marked. The mark is pickled with them; a deep copy, and a conversion that makes new parameters
    (`torch.__future__.set_swap_module_params_on_conversion`), leaves it behind: ask again after those.

    Raises:
        TypeError: not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"keep_factored expected a torch.nn.Module, got {type(model).__name__}. Pass the model itself.")
    for module in model.modules():
        if isinstance(module, nn.Linear):
            if keep:
                setattr(module.weight, _MARK, "keep_factored")
            else:
                ask_no_more(module.weight)
    return model
