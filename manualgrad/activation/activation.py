"""What an activation function is: sigma with its derivative, known by name. The built-in ones stand in `activations`."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from manualgrad.activation.did_you_mean import did_you_mean, why_not_elementwise


_built_in: "dict[str, Activation]" = {}
_user_defined: "dict[str, Activation]" = {}
activations: "Mapping[str, Activation]" = MappingProxyType(_built_in)


class Activation:
    """An activation function a = sigma(z) with its derivative sigma'(z), both elementwise.

    `mg.Activation("cube", value=lambda z: z**3, derivative=lambda z: 3 * z**2)` can be used at once as an object, or by
    name: `mg.Dense(2, 3, activation="cube")`. Making another one of the same name replaces it.

    Args:
        name: what it is called, and how a layer that uses it finds it again when it is unpickled.
        value: z -> a, any shape; must not change z.
        derivative: z -> sigma'(z), or a -> sigma'(z) if `from_output`; the shape and dtype of its argument.
            Second derivatives are taken through it by autograd. Raises ValueError where its result has another shape.
        from_output: `derivative` and `product` are functions of a. Saves memory: the layer then does not keep z.
        product: (g, z or a) -> g * sigma' (conj(sigma') if complex), where one kernel does both. Optional.
        value_in_place: z -> a, written over z. Optional; used where z is the layer's own and needed no more.
        recipe: how pickle makes it again, as `object.__reduce__` returns it. By default by its name, under which it is then
            registered; one with a recipe is known by no name.

    Raises:
        TypeError: the name is not a string, `value` or `derivative` cannot be called.
        ValueError: the name is that of a built-in activation.
    """

    def __init__(
        self,
        name: str,
        value: Callable[[Tensor], Tensor],
        derivative: Callable[[Tensor], Tensor],
        *,
        from_output: bool = False,
        product: Callable[[Tensor, Tensor], Tensor] | None = None,
        value_in_place: Callable[[Tensor], Tensor] | None = None,
        recipe: "tuple[Callable[..., Activation], tuple] | None" = None,
    ) -> None:
        _check_definition(name, value, derivative)
        if recipe is None and name in activations:
            raise ValueError(f"Activation {name!r} is built in and cannot be redefined. Choose another name.")
        self.name = name
        self.value = value
        self.derivative = derivative if product else _checked_derivative(name, derivative)
        self.from_output = from_output
        self.product = product
        self.value_in_place = value_in_place if from_output else None  # else z is kept
        self.recipe = recipe or (activation_named, (name,))
        if recipe is None:
            _user_defined[name] = self

    def __repr__(self) -> str:
        return f"Activation({self.name!r})"

    def __reduce__(self) -> "tuple[Callable[..., Activation], tuple]":
        return self.recipe

    def __fx_create_arg__(self, tracer: torch.fx.Tracer) -> Any:
        """How a traced graph writes it down: by its name, or by the call that makes it."""
        function, arguments = self.recipe
        return (
            self.name if function is activation_named else tracer.create_node("call_function", function, arguments, {})
        )

    def __deepcopy__(self, memo: dict) -> "Activation":
        return self  # not by name: another activation may have taken it meanwhile


def activation_named(activation: "str | Activation | None") -> "Activation":
    """The activation of that name; an `Activation` is returned as it is, None is the identity.

    Raises:
        ValueError: nothing is known by that name. The message lists what is.
        TypeError: neither a name nor an `Activation`.
    """
    if activation is None:
        return _built_in["identity"]
    if isinstance(activation, Activation):
        return activation
    if not isinstance(activation, str):
        raise TypeError(
            f"Expected `activation` to be a name, an Activation or None, got {activation!r}. "
            + (
                why_not_elementwise(activation)
                or "Pass for example 'relu', or wrap a function: mg.Activation(name, value=..., derivative=...)."
                f"{did_you_mean(activation, _built_in)}"
            )
        )
    found = _built_in.get(activation) or _user_defined.get(activation)
    if found is None:
        known = ", ".join(known_names())
        raise ValueError(
            f"Unknown activation {activation!r}. Known: {known}. "
            + (
                why_not_elementwise(activation)
                or f"Define your own with mg.Activation({activation!r}, value=..., derivative=...)."
                f"{did_you_mean(activation, known_names())}"
            )
        )
    return found


def known_names() -> list[str]:
    """Of the built-in activations, and then of the user's."""
    return [*_built_in, *_user_defined]


def build_in(
    name: str, value: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor], **options: Any
) -> None:
    """Make a built-in activation, which nothing can replace. Arguments as for `Activation`."""
    _built_in[name] = Activation(name, value, derivative, **options, recipe=(activation_named, (name,)))


def _check_definition(name: str, value: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor]) -> None:
    """Raises TypeError unless `name` is a string and the others can be called."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"Activation expected `name` to be a non-empty string, got {name!r}. Pass for example 'cube'.")
    for role, function, example in (("value", value, "z**3"), ("derivative", derivative, "3 * z**2")):
        if not callable(function):
            raise TypeError(
                f"Activation {name!r} expected `{role}` to be a function of a tensor, got {function!r}. "
                f"Pass for example {role}=lambda z: {example}."
            )


def _checked_derivative(name: str, derivative: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`derivative`, raising ValueError where it returns something that is not sigma' element by element."""

    def checked(x: Tensor) -> Tensor:
        slope = derivative(x)
        if not isinstance(slope, Tensor) or slope.shape != x.shape:
            came = f"a tensor of shape {tuple(slope.shape)}" if isinstance(slope, Tensor) else repr(slope)
            raise ValueError(
                f"Activation {name!r} expected `derivative` to return a tensor of its argument's shape {tuple(x.shape)}, "
                f"got {came}. Compute it element by element; for a constant return torch.full_like(z, constant)."
            )
        return slope

    return checked
