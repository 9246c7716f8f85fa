"""Which `nn.Sequential`s a model takes apart: calls or reads their parts, and not only the whole.

Inside such a one nothing may move from one slot into another, or the model would find in a slot what it does not expect.
Found out from the source of the methods of the classes that hold them (manualgrad/conversion/uses_of_self.py); what cannot be read
counts as taken apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from manualgrad.conversion.uses_of_self import CALLED, LOOPED, REACHES_ALL, UNKNOWN, is_a_frameworks, uses_of_self


def taken_apart(model: nn.Module) -> dict[int, str]:
    """{id of an nn.Sequential: the class that takes it apart}, for those in the model that are."""
    found: dict[int, str] = {}
    owners = [module for module in model.modules() if not is_a_frameworks(type(module))]
    uses_by_class = {cls: uses_of_self(cls) for cls in {type(owner) for owner in owners}}
    for owner in owners:
        uses, name_of_class = uses_by_class[type(owner)], type(owner).__name__
        by_any_name = UNKNOWN in uses or "forward" in owner.__dict__ or _keeps_modules_aside(owner)
        for name, child in owner._modules.items():
            if child is None:
                continue
            if by_any_name:
                found.update((id(part), name_of_class) for part in _sequentials([child]))
            if not all(_leaves_whole(use, child) for use in uses.get(name, ())):
                found.update((id(part), name_of_class) for part in child.modules() if isinstance(part, nn.Sequential))
    return found


def _leaves_whole(use: str, child: nn.Module) -> bool:
    """Whether a use of `self.child` cannot see into an nn.Sequential in it."""
    if use.startswith("."):  # self.child.name: a method or a number of its own is its own class's affair
        container = isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        return not (container or use[1:] in child._modules or use[1:] in REACHES_ALL)
    return use == CALLED or (use == LOOPED and not isinstance(child, nn.Sequential))


def _keeps_modules_aside(owner: nn.Module) -> bool:
    """self.parts = [self.net[0]]: in a plain list, tuple or dict, under a name that the source need not show."""
    own = [value for name, value in owner.__dict__.items() if name not in _OF_EVERY_MODULE]
    items = [
        item for x in own if isinstance(x, list | tuple | dict) for item in (x.values() if isinstance(x, dict) else x)
    ]
    return any(isinstance(item, nn.Module) for item in items)


_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)


def _sequentials(modules: Iterable[nn.Module]) -> Iterator[nn.Sequential]:
    """Those among the modules, and what they hold, as far as that is reached by indexing."""
    for module in modules:
        if isinstance(module, nn.Sequential):
            yield module
        if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            yield from _sequentials(module.children())
