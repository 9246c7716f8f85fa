"""The modules that `convert` looks at, by name, and which of them `include` and `exclude` mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase

from torch import nn

from manualgrad.conversion.obstacles import is_activation, is_linear_like, is_linear_of_its_own


ROOT = "(the model itself)"
Selection = str | Iterable[str] | Callable[[str, nn.Module], bool]


def candidates(model: nn.Module, caller: str) -> dict[nn.Module, list[str]]:
    """Each linear layer and activation of the model with all of its names, in the model's order.

    Raises:
        TypeError: not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller} expected a torch.nn.Module, got {type(model).__name__}. Pass the model itself.")
    found: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if is_linear_like(module) or is_activation(module) or is_linear_of_its_own(module):
            found.setdefault(module, []).append(name or ROOT)
    return found


def selected(found: dict[nn.Module, list[str]], selection: Selection, argument: str) -> set[nn.Module]:
    """Those that a selection means.

    Raises:
        TypeError: neither names nor a function.
        ValueError: a name that matches none.
    """
    if callable(selection):
        return {module for module, names in found.items() if any(selection(name, module) for name in names)}
    patterns = (
        [selection] if isinstance(selection, str) else list(selection) if isinstance(selection, Iterable) else [None]
    )
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(
            f"convert expected `{argument}` to be a name, several names, or a function (name, module) -> bool, got {selection!r}. "
            "Names are those of model.named_modules()."
        )
    chosen = set()
    for pattern in patterns:
        matching = {module for module, names in found.items() if any(_matches(name, pattern) for name in names)}
        if not matching:
            known = ", ".join(names[0] for names in found.values()) or "none"
            raise ValueError(
                f"convert expected `{argument}` to name linear layers or activations, got {pattern!r}, which matches none. "
                f"Use names from this list, or wildcards: {known}."
            )
        chosen |= matching
    return chosen


def _matches(name: str, pattern: str) -> bool:
    """Whether the pattern is for this module or for one that it is in."""
    return any(fnmatchcase(prefix, pattern) for prefix in _prefixes(name))


def _prefixes(name: str) -> Iterator[str]:
    """ "a.b.c" -> "a", "a.b", "a.b.c"."""
    parts = name.split(".")
    return (".".join(parts[: i + 1]) for i in range(len(parts)))
