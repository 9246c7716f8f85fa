"""Turn the linear layers and activations of any model into those with a backward pass by hand, and back.

A converted module is the same object with another class: its Parameters, buffers, hooks, name and place stay what they were,
so that optimizers, tied weights, checkpoints and references to it notice nothing.
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from manualgrad.activation.built_in import identity
from manualgrad.conversion.obstacles import obstacle
from manualgrad.conversion.selection import ROOT, Selection, candidates, selected
from manualgrad.factored.requests import ask_for, ask_no_more
from manualgrad.layers.activation_modules import BY_HAND, ByHand
from manualgrad.layers.dense import Dense


Model = TypeVar("Model", bound=nn.Module)


def convert(
    model: Model, include: Selection | None = None, exclude: Selection | None = None, *, factored: bool = False
) -> Model:
    """Differentiate by hand what a model computes anyway, in place. `revert` undoes it; calling it again changes nothing.

    Every plain `nn.Linear` becomes a `Dense` that returns z, and every plain ReLU, LeakyReLU, ELU, Sigmoid, Tanh, Softplus,
    GELU and SiLU of `torch.nn` a subclass of itself with a backward pass by hand. Each stays the object that it was, in its
    place, with the same output, hooks and attributes, and saves for the backward pass what it saved before.

    Left alone: subclasses of these; parametrized, quantised, lazy, sharded and scripted layers; layers whose weight is read
    and never called, as `nn.MultiheadAttention`'s. `conversion_report(model)` says which and why. Tools that look for
    exactly `nn.Linear`, as `quantize_dynamic` does, find none: `revert` before.

    Args:
        model: any module, also a single `nn.Linear`.
        include, exclude: which linear layers and activations, by default all and none: names from `model.named_modules()`,
            where `*`, `?` and `[...]` are wildcards and a module's name stands for everything in it; or (name, module) -> bool.
        factored: also ask for factored gradients in each `Dense` layer that was chosen, as `keep_factored` does, for an optimizer
            made before or after. `revert` withdraws that.

    Returns:
        The model itself.

    Raises:
        TypeError: not a module; `include` or `exclude` is neither names nor a function; `factored` is not True or False.
        ValueError: a name that matches no linear layer and no activation.
    """
    if not isinstance(factored, bool):
        raise TypeError(f"convert expected `factored` to be True or False, got {factored!r}. Pass factored=True.")
    found = candidates(model, "convert")
    chosen = selected(found, include, "include") if include is not None else set(found)
    if exclude is not None:
        chosen -= selected(found, exclude, "exclude")
    for module, names in found.items():
        path = "" if names[0] == ROOT else names[0]
        if module in chosen and obstacle(module) is None:
            if type(module) is nn.Linear:
                module.__class__ = Dense
                module.__dict__.update(activation=identity, path=path)
            elif type(module) in BY_HAND:
                module.__class__ = BY_HAND[type(module)]
            if factored and isinstance(module, Dense):
                ask_for(module.weight, "convert")
        if "path" in module.__dict__:
            module.__dict__["path"] = path  # it may have been converted as part of a part
    return model


def revert(model: Model) -> Model:
    """Undo `convert`, in place: the same modules in the same slots, with the weights that they have now.

    Layers that were `Dense` from the start stay; what `convert(factored=True)` asked of them is withdrawn.

    Returns:
        The model itself.

    Raises:
        TypeError: not a module.
        RuntimeError: a converted module has been changed since, so that it cannot be restored. Nothing is changed.
    """
    found = candidates(model, "revert")
    converted = {module: names[0] for module, names in found.items() if _is_converted(module)}
    for module, name in converted.items():
        by_hand: type[nn.Module] = BY_HAND[module.torch_class] if isinstance(module, ByHand) else Dense
        if type(module) is not by_hand:
            raise RuntimeError(
                f"revert expected {name!r} to be a {by_hand.__name__}, as convert left it, got {type(module).__name__}. "
                "Undo what changed its class first (for a parametrization: torch.nn.utils.parametrize.remove_parametrizations)."
            )
        if isinstance(module, Dense) and module.activation is not identity:
            raise RuntimeError(
                f"revert expected {name!r} to return z, as convert left it, got the activation {module.activation.name!r}, "
                "which an nn.Linear cannot have. Set its activation to mg.activations['identity'] and put a module in its place."
            )
    for module in found:
        if isinstance(module, Dense):
            ask_no_more(module.weight, "convert")
    for module in converted:
        if isinstance(module, ByHand):
            module.__class__ = module.torch_class
        else:
            del module.__dict__["activation"], module.__dict__["path"]
            module.__class__ = nn.Linear
    return model


def _is_converted(module: nn.Module) -> bool:
    return isinstance(module, ByHand) or "path" in module.__dict__
