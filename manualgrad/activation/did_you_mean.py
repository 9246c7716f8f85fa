"""Suggest the activation that a misspelt name, or a module or function of PyTorch, probably meant."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

from torch import nn
from torch.nn import functional as F


_OTHER_NAMES = {"linear": "identity", "none": "identity", "swish": "silu"}
_OF_ALL_OUTPUTS = ("softmax", "logsoftmax", "softmin")


def closest(given: object, known: Iterable[str]) -> str | None:
    """The known name of the same activation: other capitals, or the module, its class or the function of that name. For text
    also the nearest name, unless PyTorch has a function that is really called so ('selu' is no mistyped 'elu')."""
    if isinstance(given, nn.Module) and not _is_plain(given):
        return None
    name = _name(given)
    by_letters = {_letters(known_name): known_name for known_name in known}
    found = by_letters.get(_letters(name))
    if found is None and isinstance(given, str):
        found = by_letters.get(_OTHER_NAMES.get(_letters(name), ""))
    if found is None and isinstance(given, str) and not hasattr(F, _letters(name)):
        found = next((by_letters[near] for near in get_close_matches(_letters(name), by_letters, n=1)), None)
    return found


def why_not_elementwise(given: object) -> str | None:
    """What to do instead, if it is a softmax."""
    if _letters(_name(given)) not in _OF_ALL_OUTPUTS:
        return None
    return (
        f"An activation is elementwise, and {_name(given)} is not. Leave the last layer without an activation and train with "
        "mg.SoftmaxCrossEntropyLoss(), which takes z; for probabilities call torch.softmax(outputs, -1)."
    )


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """The question, with a space before it; nothing where nothing is near."""
    found = closest(given, known)
    return "" if found is None else f" Did you mean {found!r}?"


def _name(given: object) -> str:
    return given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _is_plain(module: nn.Module) -> bool:
    """Whether it is one of torch.nn with its default options: nn.LeakyReLU(0.3) is not 'leaky_relu'."""
    if not type(module).__module__.startswith("torch.nn."):
        return False
    options = re.sub(r"(, )?inplace=True", "", module.extra_repr())
    try:
        return options == type(module)().extra_repr()
    except TypeError:  # it cannot be made without options
        return False
