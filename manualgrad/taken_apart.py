"""Which `nn.Sequential`s a model takes apart: calls or reads their parts, and not only the whole.

Inside such a one nothing may move from one slot into another, or the model would find in a slot what it does not expect.
Found out from the source of the classes that hold them; what cannot be read counts as taken apart.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator

from torch import nn


CALLED, LOOPED, OTHERWISE = "called", "an item of it called", "otherwise"


def taken_apart(model: nn.Module) -> dict[int, str]:
    """{id of an nn.Sequential: the class that takes it apart}, for those in the model that are."""
    found: dict[int, str] = {}
    owners = [module for module in model.modules() if not _is_pytorchs(type(module))]
    uses_by_class = {cls: _uses(cls) for cls in {type(owner) for owner in owners}}
    for owner in owners:
        uses = uses_by_class[type(owner)]
        for name, child in owner._modules.items():
            allowed = {CALLED} if isinstance(child, nn.Sequential) else {CALLED, LOOPED}
            if uses is None or not uses.get(name, set()) <= allowed:
                found.update((id(part), type(owner).__name__) for part in _sequentials(child))
    return found


def _is_pytorchs(cls: type) -> bool:
    """Containers, and wrappers like DistributedDataParallel and what torch.compile returns: they call the whole."""
    return cls.__module__.startswith("torch.")


def _sequentials(module: nn.Module | None) -> Iterator[nn.Sequential]:
    """The module and what it holds, as far as that is reached by indexing."""
    if isinstance(module, nn.Sequential):
        yield module
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        for child in module.children():
            yield from _sequentials(child)


def _uses(cls: type) -> dict[str, set[str]] | None:
    """How the methods of a class use each attribute of self; None if the source cannot be read."""
    uses: dict[str, set[str]] = {}
    for base in cls.__mro__:
        if _is_pytorchs(base) or base is object:
            continue
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError, ValueError):
            return None
        for method in ast.walk(tree):
            if (
                isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
                and method.name != "__init__"
                and method.args.args
            ):
                for name, use in _uses_in(method, method.args.args[0].arg):
                    uses.setdefault(name, set()).add(use)
    return uses


def _uses_in(method: ast.AST, self_name: str) -> Iterator[tuple[str, str]]:
    parents = {child: parent for parent in ast.walk(method) for child in ast.iter_child_nodes(parent)}
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self_name:
            yield node.attr, _use(node, parents, method)


def _use(node: ast.AST, parents: dict[ast.AST, ast.AST], method: ast.AST) -> str:
    parent = parents[node]
    if _is_called(node, parents):
        return CALLED
    if isinstance(parent, ast.Subscript) and parent.value is node and _is_called(parent, parents):
        return LOOPED
    while node in parents:  # for block in [enumerate(, reversed(, zip(] self.blocks
        parent = parents[node]
        if isinstance(parent, ast.For | ast.comprehension) and parent.iter is node:
            items = {name.id for name in ast.walk(parent.target) if isinstance(name, ast.Name)}
            loads = (n for n in ast.walk(method) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))
            return LOOPED if all(_is_called(n, parents) for n in loads if n.id in items) else OTHERWISE
        if not isinstance(parent, ast.Call | ast.Attribute):
            break
        node = parent
    return OTHERWISE


def _is_called(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """node(...), or checkpoint(node, ...)."""
    call = parents[node]
    if not isinstance(call, ast.Call):
        return False
    return call.func is node or (call.args[:1] == [node] and ast.unparse(call.func).endswith("checkpoint"))
