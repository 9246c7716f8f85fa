"""What gradient descent accepts: the errors that `GradientDescent` raises before anything has changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT


_NUMBERS = ("lr", "momentum", "dampening", "weight_decay")
_PLAIN = {float, int}


def as_list(params: ParamsT) -> list[Any]:
    """The parameters or param groups. Raises TypeError where they cannot be gone through, ValueError where there are none."""
    listed = list(params) if isinstance(params, Iterable) else None
    # An nn.Sequential goes through its layers; an nn.ParameterList, through parameters.
    if listed is None or (isinstance(params, nn.Module) and not all(isinstance(p, Tensor) for p in listed)):
        raise TypeError(
            f"GradientDescent expected `params` to be a sequence of parameters, got {type(params).__name__}. "
            "Pass for example model.parameters()."
        )
    if not listed:
        raise ValueError("optimizer got an empty parameter list. Pass for example model.parameters().")
    return listed


def check_options(options: Mapping[str, Any]) -> None:
    """The options of one param group. The first words of each sentence on a range are `torch.optim.SGD`'s.

    Raises TypeError for an option of a wrong type, ValueError for one out of range.
    """
    lr, momentum, weight_decay = options["lr"], options["momentum"], options["weight_decay"]
    if lr is None:
        raise TypeError(
            "GradientDescent expected a learning rate `lr`, got none. "
            "Pass for example GradientDescent(model.parameters(), lr=0.1), or an lr in every param group."
        )
    check_types(options)
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(
            f"Tensor lr must be 1-element, got shape {tuple(lr.shape)}. Give each param group an lr of its own."
        )
    if not 0 <= lr < float("inf"):  # NaN fails both
        raise ValueError(f"Invalid learning rate: {lr}. Expected a finite number >= 0, for example lr=0.1.")
    if not 0 <= momentum <= 1:
        raise ValueError(
            f"Invalid momentum value: {momentum}. Expected a number from 0 to 1, for example momentum=0.9."
        )
    if not 0 <= weight_decay < float("inf"):
        raise ValueError(
            f"Invalid weight_decay value: {weight_decay}. Expected a finite number >= 0, for example weight_decay=1e-4."
        )
    if not math.isfinite(options["dampening"]):
        raise ValueError(
            f"Invalid dampening value: {options['dampening']}. Expected a finite number, for example dampening=0.1."
        )
    if options["nesterov"] and (momentum <= 0 or options["dampening"] != 0):
        raise ValueError(
            "Nesterov momentum requires a momentum and zero dampening, "
            f"got momentum={momentum} and dampening={options['dampening']}. Pass for example momentum=0.9, dampening=0."
        )


def check_types(options: Mapping[str, Any]) -> None:
    """Raises TypeError for an option of a wrong type."""
    for name, example in (("lr", 0.1), ("momentum", 0.9), ("dampening", 0.1), ("weight_decay", 1e-4)):
        value = options[name]
        is_tensor_lr = name == "lr" and isinstance(value, Tensor) and not value.is_complex()
        if not isinstance(value, Real) and not is_tensor_lr:
            raise TypeError(
                f"GradientDescent expected `{name}` to be a real number, got {value!r}. Pass for example {name}={example}."
            )
    for name in ("nesterov", "maximize"):
        check_flag(name, options[name])


def in_numbers(group: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of a group as PyTorch's operations take them: real numbers of other kinds, such as fractions, as floats.

    Raises TypeError for an option of a wrong type.
    """
    if {type(group[name]) for name in _NUMBERS} <= _PLAIN:
        return group
    check_types(group)
    return {**group, **{n: x if isinstance(x := group[n], Tensor) else float(x) for n in _NUMBERS}}


def check_state(state: Mapping[str, Any]) -> None:
    """Raises ValueError unless this is the state, unpickled or to be loaded, of gradient descent or `torch.optim.SGD`."""
    groups = state.get("param_groups", [])
    missing = [name for name in _NUMBERS if any(name not in group for group in groups)]
    foreign = {key for of_one in state.get("state", {}).values() for key in of_one} - {"momentum_buffer"}
    if missing or foreign:
        has = sorted(foreign | {key for group in groups for key in ("betas", "eps", "alpha", "rho") if key in group})
        without = f" without {', '.join(missing)}" if missing else ""
        raise ValueError(
            f"GradientDescent expected a state dict of its own or of torch.optim.SGD, got another optimizer's{without}"
            f"{', with ' + ', '.join(has) if has else ''}. "
            "Load it into an optimizer of the class that it comes from, or go on without it."
        )


def check_flag(name: str, value: Any) -> None:
    """Raises TypeError for anything but True and False (or 1 and 0): the text "no" would count as yes."""
    if not isinstance(value, bool | int):
        raise TypeError(
            f"GradientDescent expected `{name}` to be True or False, got {value!r}. Pass {name}=True or False."
        )
