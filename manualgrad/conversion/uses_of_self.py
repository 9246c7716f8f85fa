"""How the methods of a class use the attributes of `self`, as far as their source tells."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from types import FunctionType
from typing import Any


CALLED, LOOPED, OTHERWISE = "called", "an item of it called", "otherwise"
UNKNOWN = "*"  # in place of a name: any attribute may be meant
REACHES_ALL = frozenset(
    "_modules __dict__ __getattr__ __getattribute__ children named_children modules named_modules get_submodule".split()
)
_ASKS = ("super", "isinstance", "issubclass", "type", "len", "id", "hasattr")  # functions that do not look inside
_PASSES_ITEMS_ON = (
    "enumerate",
    "reversed",
    "zip",
    "list",
    "tuple",
    "iter",
    "items",
    "values",
    "children",
    "named_children",
)


def is_a_frameworks(cls: type) -> bool:
    """Containers, and wrappers like DistributedDataParallel and what torch.compile returns: they call the whole."""
    module = cls.__module__
    return module.startswith(("torch.", "lightning.", "pytorch_lightning.")) or module in ("builtins", "typing", "abc")


def uses_of_self(cls: type) -> dict[str, set[str]]:
    """{attribute: its uses}: CALLED, LOOPED, ".name" for self.attribute.name, or OTHERWISE.

    The key UNKNOWN is there if some use has no name: getattr(self, ...), self.children(), source that cannot be read.
    """
    uses: dict[str, set[str]] = {}
    for base in cls.__mro__:
        if is_a_frameworks(base):
            continue
        for name, value in vars(base).items():
            for name_used, use in _uses_in_attribute(name, value):
                uses.setdefault(UNKNOWN if name_used in REACHES_ALL else name_used, set()).add(use)
    return uses


def _uses_in_attribute(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """What a method, a property, a lambda or a partial function in the class does with self."""
    if isinstance(value, property):
        parts = [value.fget, value.fset, value.fdel]
    elif isinstance(value, functools.cached_property | functools.partial | functools.partialmethod):
        parts = [value.func]
    else:
        parts = [value.__func__ if isinstance(value, staticmethod | classmethod) else value]
    for part in parts:
        while part is not None:  # a decorated method and what it wraps
            if isinstance(part, FunctionType):
                yield from _uses_in_function(part, in_init=name == "__init__")
            elif callable(part) and not isinstance(part, type):
                yield UNKNOWN, OTHERWISE
            part = getattr(part, "__wrapped__", None)


def _uses_in_function(function: FunctionType, in_init: bool) -> Iterator[tuple[str, str]]:
    if str(function.__globals__.get("__name__")).startswith("torch."):  # the wrapper of torch.no_grad and the like
        return
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function.__code__))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        yield UNKNOWN, OTHERWISE
        return
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]
    if not functions or (functions[0] is not tree and len(functions) > 1):  # which of several lambdas in a line?
        yield UNKNOWN, OTHERWISE
        return
    arguments = functions[0].args
    first = [*arguments.posonlyargs, *arguments.args][:1]
    if not first:
        if arguments.vararg and not hasattr(function, "__wrapped__"):
            yield UNKNOWN, OTHERWISE
        return
    # __init__ may do with the parts what it likes, but not what it defines there for later
    for scope in functions[1:] if in_init else functions[:1]:
        yield from _uses_in(scope, first[0].arg)


def _uses_in(scope: ast.AST, self_name: str) -> Iterator[tuple[str, str]]:
    parents = {child: parent for parent in ast.walk(scope) for child in ast.iter_child_nodes(parent)}
    for node in ast.walk(scope):
        if isinstance(node, ast.Name) and node.id == self_name:
            parent = parents[node]
            if isinstance(parent, ast.Attribute):
                yield parent.attr, _use(parent, parents, scope)
            elif not (isinstance(parent, ast.Return) or _is_asked_about(node, parents) or _calls(parent, node)):
                yield UNKNOWN, OTHERWISE


def _use(node: ast.AST, parents: dict[ast.AST, ast.AST], scope: ast.AST) -> str:
    parent = parents[node]
    if _is_called(node, parents) or _is_asked_about(node, parents):
        return CALLED
    if isinstance(parent, ast.Subscript) and parent.value is node and _is_called(parent, parents):
        return LOOPED
    attribute = f".{parent.attr}" if isinstance(parent, ast.Attribute) else OTHERWISE
    while node in parents:  # for block in [enumerate(, reversed(, zip(] self.blocks
        parent = parents[node]
        if isinstance(parent, ast.For | ast.comprehension) and parent.iter is node:
            items = {name.id for name in ast.walk(parent.target) if isinstance(name, ast.Name)}
            loads = (n for n in ast.walk(scope) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))
            return LOOPED if all(_is_called(n, parents) for n in loads if n.id in items) else OTHERWISE
        if isinstance(parent, ast.Call) and not (parent.func is node or _name(parent.func) in _PASSES_ITEMS_ON):
            break
        if isinstance(parent, ast.Attribute) and parent.attr not in _PASSES_ITEMS_ON:
            break
        if not isinstance(parent, ast.Call | ast.Attribute):
            break
        node = parent
    return attribute


def _name(function: ast.AST) -> str:
    return function.id if isinstance(function, ast.Name) else ""


def _is_asked_about(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """len(node), node is None."""
    parent = parents[node]
    if isinstance(parent, ast.Call):
        return node in parent.args and _name(parent.func) in _ASKS
    return isinstance(parent, ast.Compare) and all(isinstance(operator, ast.Is | ast.IsNot) for operator in parent.ops)


def _is_called(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """node(...), or checkpoint(node, ...)."""
    call = parents[node]
    if not isinstance(call, ast.Call):
        return False
    return _calls(call, node) or (call.args[:1] == [node] and ast.unparse(call.func).endswith("checkpoint"))


def _calls(call: ast.AST, node: ast.AST) -> bool:
    return isinstance(call, ast.Call) and call.func is node
