"""Copy the user's optimizer onto the copied model, and describe it."""

import copy
import inspect
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from manualgrad.factored.requests import pass_on_requests


def copied_optimizer(optimizer: Optimizer, model: nn.Module, memo: dict[int, Any]) -> Optimizer:
    """The optimizer with its state, over the copies of its parameters, which are in `memo`, the dictionary of `copy.deepcopy`.

    Weights for which factored gradients were requested get them in the copy as well: a factored update rounds differently.

    Raises:
        TypeError: not an optimizer.
        ValueError: it has no parameter of the model, or its step calls the loss itself.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"trace expected `optimizer` to be a torch.optim.Optimizer, got {type(optimizer).__name__}. "
            "Pass for example mg.GradientDescent(model.parameters(), lr=0.1)."
        )
    name = type(optimizer).__name__
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"trace expected an optimizer that makes its step from one gradient, got {name}, which computes the loss anew "
            "as often as it likes. Pass for example mg.GradientDescent(model.parameters(), lr=0.1)."
        )
    of_model = {id(p) for p in model.parameters()}
    if not any(id(p) in of_model for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            f"trace expected an optimizer of the model's parameters, got {name} with none of them. "
            f"Make it from this model: {name}(model.parameters(), ...)."
        )
    optimizer_copy = copy.deepcopy(optimizer, memo)
    pass_on_requests(model, memo[id(model)])
    return optimizer_copy


def described(optimizer: Optimizer) -> str:
    """For example "GradientDescent(lr=0.5, momentum=0.9)": its class, lr, and the options that differ from their defaults."""
    options = []
    for key, option in list(inspect.signature(type(optimizer)).parameters.items())[1:]:  # without params
        values = {_written(group[key]) for group in optimizer.param_groups if key in group}
        if values and (key == "lr" or values != {_written(option.default)}):
            options.append(f"{key}={' or '.join(sorted(values))}")
    return f"{type(optimizer).__name__}({', '.join(options)})"


def common_lr(optimizer: Optimizer) -> float | None:
    """The learning rate, if all parameters share one."""
    rates = {_number(group.get("lr")) for group in optimizer.param_groups}
    return float(rates.pop()) if len(rates) == 1 and None not in rates else None


def _number(x: Any) -> Any:
    return x.item() if isinstance(x, Tensor) and x.numel() == 1 else x


def _written(x: Any) -> str:
    x = _number(x)
    return f"{x:.6g}" if isinstance(x, float) else str(x)
