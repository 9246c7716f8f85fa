"""What an activation may be made of: errors for names and functions that cannot work."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def check_definition(name: str, value: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor]) -> None:
    """Raises TypeError unless `name` is a string and the others can be called."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"Activation expected `name` to be a non-empty string, got {name!r}. Pass for example 'cube'.")
    for role, function, example in (("value", value, "z**3"), ("derivative", derivative, "3 * z**2")):
        if not callable(function):
            raise TypeError(
                f"Activation {name!r} expected `{role}` to be a function of a tensor, got {function!r}. "
                f"Pass for example {role}=lambda z: {example}."
            )


def checked_derivative(name: str, derivative: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
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
