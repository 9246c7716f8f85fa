"""Turn the linear layers of any model into `Dense` layers, and back.

A converted layer is the same object with another class: its Parameters, buffers, hooks, name and place stay what they were,
so that optimizers, tied weights, checkpoints and references to it notice nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from manualgrad.activation.built_in import identity
from manualgrad.conversion.obstacles import Sequence, has_hooks, is_linear_like, obstacle
from manualgrad.layers.dense import Dense


Model = TypeVar("Model", bound=nn.Module)
_ROOT = "(the model itself)"
Selection = str | Iterable[str] | Callable[[str, nn.Module], bool]


def convert(model: Model, include: Selection | None = None, exclude: Selection | None = None) -> Model:
    """Make every plain `nn.Linear` in the model a `Dense`, in place. `revert` undoes it; calling it again changes nothing.

    In an `nn.Sequential`, an activation directly after the layer (ReLU, LeakyReLU, ELU, Sigmoid, Tanh, Softplus, GELU,
    SiLU) moves into it, and an `nn.Identity` takes its slot, so that state dict keys stay. It is left where it is if it
    or the layer has hooks or is used in several places, or if the class that holds the `nn.Sequential` does more with it
    than call it (`self.net[0](x)`, `for layer in self.net`). Otherwise the layer's output is then a, not z: know that
    when you call it by itself from outside of the model, or hook it later.

    Left alone: subclasses of `nn.Linear`; parametrized, quantised, lazy, sharded and scripted layers; layers whose
    weight is read and never called, as `nn.MultiheadAttention`'s. `conversion_report(model)` says which and why. Tools
    that look for exactly `nn.Linear`, as `quantize_dynamic` does, find none: `revert` before.

    Args:
        model: any module, also a single `nn.Linear`.
        include, exclude: which layers, by default all and none: names from `model.named_modules()`, where `*`, `?` and
            `[...]` are wildcards and a module's name stands for everything in it; or (name, module) -> bool.

    Returns:
        The model itself.

    Raises:
        TypeError: not a module; `include` or `exclude` is neither names nor a function.
        ValueError: a name that matches no linear layer.
    """
    layers = _linear_layers(model, "convert")
    chosen = _selected(layers, include, "include") if include is not None else set(layers)
    if exclude is not None:
        chosen -= _selected(layers, exclude, "exclude")
    sequence = Sequence(model)
    plan = [
        (layer, _path(names), sequence.fusible(layer)[0])
        for layer, names in layers.items()
        if layer in chosen and type(layer) is nn.Linear and obstacle(layer) is None
    ]
    for layer, names in layers.items():
        if "path" in layer.__dict__:
            layer.__dict__["path"] = _path(names)  # it may have been converted as part of a part
    for layer, name, activation in plan:
        layer.__class__ = Dense
        layer.__dict__.update(activation=activation or identity, path=name)
        if activation is not None:
            parent, slot = sequence.next[id(layer)]
            original = parent._modules[slot]
            parent._modules[slot] = nn.Identity().train(original.training)
            layer.__dict__["fused"] = (parent._modules[slot], original)  # in a tuple: not a submodule
    return model


def revert(model: Model) -> Model:
    """Undo `convert`, in place: the same modules in the same slots, with the weights that they have now.

    Layers that were `Dense` from the start stay.

    Returns:
        The model itself.

    Raises:
        TypeError: not a module.
        RuntimeError: a converted layer has been changed since, so that it cannot be restored. Nothing is changed.
    """
    named = _linear_layers(model, "revert")
    layers = {layer: layer.path or names[0] for layer, names in named.items() if "path" in layer.__dict__}
    slots = {}
    for parent in model.modules():
        slots.update({id(child): (parent, slot) for slot, child in parent._modules.items()})
    for layer, name in layers.items():
        if type(layer) is not Dense:
            raise RuntimeError(
                f"revert expected {name!r} to be a Dense, as convert left it, got {type(layer).__name__}. "
                "Undo what changed its class first (for a parametrization: torch.nn.utils.parametrize.remove_parametrizations)."
            )
        if "fused" in layer.__dict__:
            placeholder, original = layer.__dict__["fused"]
            if id(placeholder) not in slots:
                raise RuntimeError(
                    f"revert expected the nn.Identity that stands for the {type(original).__name__} of {name!r} in the model, "
                    "got a model without it. Revert the whole model, or put the nn.Identity back in its slot."
                )
            if has_hooks(placeholder):
                raise RuntimeError(
                    f"revert expected no hooks on the nn.Identity that stands for the {type(original).__name__} of {name!r}, "
                    "got some, which would be lost. Remove them, and register them again on the activation after revert."
                )
    for layer in layers:
        if "fused" in layer.__dict__:
            placeholder, original = layer.__dict__.pop("fused")
            parent, slot = slots[id(placeholder)]
            parent._modules[slot] = original.train(placeholder.training)
        del layer.__dict__["activation"], layer.__dict__["path"]
        layer.__class__ = nn.Linear
    return model


@dataclass(frozen=True)
class Conversion:
    """One linear layer of a model: `status` is "converted", "plain" (could be converted) or "left"."""

    name: str
    type: str
    status: str
    note: str


class ConversionReport(tuple[Conversion, ...]):
    """A `Conversion` for each linear layer, in the model's order; prints as a table."""

    @property
    def converted(self) -> list[str]:
        """The names of the converted layers."""
        return [row.name for row in self if row.status == "converted"]

    @property
    def left(self) -> dict[str, str]:
        """{name: why} of all the others."""
        return {row.name: row.note for row in self if row.status != "converted"}

    def __str__(self) -> str:
        cells = [("layer", "type", "status", "note"), *((r.name, r.type, r.status, r.note) for r in self)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], self._summary()])

    def _summary(self) -> str:
        return f"{len(self.converted)} of {len(self)} linear layers converted."


def conversion_report(model: nn.Module) -> ConversionReport:
    """What `convert` has converted in the model, what it left or would leave alone, and why. Changes nothing.

    Raises:
        TypeError: not a module.
    """
    layers = _linear_layers(model, "conversion_report")
    sequence = Sequence(model)
    rows: list[Conversion] = []
    for layer, names in layers.items():
        status, note = _status(layer, sequence)
        if len(names) > 1:
            note = "; ".join(filter(None, [note, f"also {', '.join(names[1:])}"]))
        rows.append(Conversion(names[0], type(layer).__name__, status, note))
    return ConversionReport(rows)


def _status(layer: nn.Module, sequence: Sequence) -> tuple[str, str]:
    if "path" in layer.__dict__:
        if "fused" in layer.__dict__:
            placeholder, original = layer.__dict__["fused"]
            kept = id(placeholder) in sequence.uses
            return "converted", f"with {type(original).__name__}" + ("" if kept else ", whose nn.Identity is gone")
        return "converted", sequence.fusible(layer)[1]
    if type(layer) is Dense:
        return "left", "a Dense from the start"
    reason = obstacle(layer)
    if reason is None:
        return "plain", "not selected by include and exclude, or convert has not been called"
    return "left", reason


def _linear_layers(model: nn.Module, caller: str) -> dict[nn.Module, list[str]]:
    """Each linear layer of the model with all of its names."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller} expected a torch.nn.Module, got {type(model).__name__}. Pass the model itself.")
    layers: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if is_linear_like(module):
            layers.setdefault(module, []).append(name or _ROOT)
    return layers


def _path(names: list[str]) -> str:
    """What errors call the layer: its first name; "" for a layer that is all of the model."""
    return "" if names[0] == _ROOT else names[0]


def _selected(layers: dict[nn.Module, list[str]], selection: Selection, argument: str) -> set[nn.Module]:
    if callable(selection):
        return {layer for layer, names in layers.items() if any(selection(name, layer) for name in names)}
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
        matching = {layer for layer, names in layers.items() if any(_matches(name, pattern) for name in names)}
        if not matching:
            known = ", ".join(names[0] for names in layers.values()) or "none"
            raise ValueError(
                f"convert expected `{argument}` to name linear layers, got {pattern!r}, which matches none. "
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
