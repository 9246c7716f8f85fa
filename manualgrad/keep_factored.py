"""Which weights want their gradient factored: those whose optimizer asked for it."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary


# Weight -> those who asked, held weakly: a discarded optimizer no longer counts. Kept beside the parameters, not on them, so
# that they are copied and pickled as before.
_wanted: Any = WeakTensorKeyDictionary()


class _Always:
    """Who asks for `keep_factored`: a request that nothing withdraws."""


_ALWAYS = _Always()


def request(weight: Tensor, by: object) -> None:
    """From now on, while `by` lives, `Dense` hands this weight a factored gradient where that saves memory."""
    if weight not in _wanted:
        _wanted[weight] = weakref.WeakSet()
    _wanted[weight].add(by)


def is_wanted(weight: Tensor) -> bool:
    """Whether somebody who lives has asked for this very tensor."""
    return bool(_wanted.get(weight))


def keep_factored(model: nn.Module) -> nn.Module:
    """Ask for factored gradients for an optimizer that does not ask itself, such as `torch.optim.SGD`. Returns the model.

    Concerns the weights of the `Dense` layers in it. `torch.optim.SGD` (loop, foreach and fused), `clip_grad_norm_` and
    `GradScaler` work on the factors; other optimizers make them dense, once per step and with a `FactorsLostWarning`.

    Raises:
        TypeError: not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"keep_factored expected a torch.nn.Module, got {type(model).__name__}. Pass the model itself.")
    for module in model.modules():
        if isinstance(module, nn.Linear):
            request(module.weight, by=_ALWAYS)
    return model
