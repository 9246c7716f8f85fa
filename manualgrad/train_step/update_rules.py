"""How each optimizer that a training step takes updates its parameters: options, state, arithmetic, all of them its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from manualgrad.factored.clipping import Gradients
from manualgrad.factored.gradient import FactoredGradient
from manualgrad.optim.gradient_descent import GradientDescent
from manualgrad.optim.gradient_descent_checks import check_types
from manualgrad.optim.sgd_rule import update


SMALL = 2**15  # entries of a weight, below which its gradient is made whole: fewer kernels


class Rule(NamedTuple):
    """How one parameter is updated."""

    parameter: nn.Parameter
    options: Mapping[str, Any]
    state: dict[str, Tensor]  # by the optimizer's own keys


class Kind(NamedTuple):
    """What the optimizers of one kind have in common."""

    names: tuple[str, ...]  # of the options: numbers, then flags
    flags: int  # how many of them
    read: Callable[[Mapping[str, Any]], tuple]  # a param group -> the values of its options
    check: Callable[[Mapping[str, Any]], None]  # raises TypeError for an option of a wrong type
    state: Callable[[nn.Parameter, Mapping[str, Any], dict[str, Any]], tuple[dict[str, Tensor], bool]]
    # (parameter, its state so far, its options) -> its state, and whether these options are for the first step only
    update: Callable[[Gradients, list[Rule]], None]  # changes parameters and state in place
    is_fused: bool  # PyTorch's fused kernels do not count what they write as changed


def _descent_options(group: Mapping[str, Any]) -> tuple:
    return tuple(map(group.__getitem__, _DESCENT_NAMES))


def _velocity(p: nn.Parameter, held: Mapping[str, Any], own: dict[str, Any]) -> tuple[dict[str, Tensor], bool]:
    if own["momentum"] == 0:
        return {}, False
    velocity = held.get("momentum_buffer")
    if velocity is not None:
        return {"momentum_buffer": velocity}, False
    is_first = own["dampening"] != 0  # the first v is g, whatever the dampening
    own["dampening"] = 0.0
    return {"momentum_buffer": torch.zeros_like(p)}, is_first


def _descend(gradients: Gradients, rules: list[Rule]) -> None:
    for (w, gradient), (_, options, state) in zip(gradients, rules, strict=True):
        if isinstance(gradient, FactoredGradient):
            gradient = gradient.renewed()  # a replay has written into the factors
        column, velocity = gradient.shape, state.get("momentum_buffer")  # of a bias (m, 1)
        update(w.view(column), gradient, None if velocity is None else velocity.view(column), options)


def _adam_options(group: Mapping[str, Any]) -> tuple:
    beta1, beta2 = group["betas"]
    is_decoupled = group.get("decoupled_weight_decay", False)
    return (
        group["lr"],
        beta1,
        beta2,
        group["eps"],
        group["weight_decay"],
        group["amsgrad"],
        group["maximize"],
        is_decoupled,
        group["fused"],
    )


def _check_adam(group: Mapping[str, Any]) -> None:
    for name, value in zip(_ADAM_NAMES[:5], _adam_options(group), strict=False):
        if not isinstance(value, Real | Tensor):
            raise TypeError(
                f"TrainStep expected Adam's `{name}` to be a real number, got {value!r}. Pass for example 0.1."
            )


def _moments(p: nn.Parameter, held: Mapping[str, Any], own: dict[str, Any]) -> tuple[dict[str, Tensor], bool]:
    names = ["step", "exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if own["amsgrad"] else [])]
    if not held:
        is_double = torch.get_default_dtype() == torch.float64 and not own["fused"]  # as the optimizer itself decides
        step = torch.zeros((), dtype=torch.float64 if is_double else torch.float32)
        return {"step": step, **{name: torch.zeros_like(p) for name in names[1:]}}, False
    missing = [name for name in names if name not in held]
    if missing:
        raise RuntimeError(
            f"TrainStep expected a state with `{missing[0]}` for every parameter, got one that was made without. "
            "Set amsgrad before the first step, or make a new optimizer."
        )
    return {name: held[name] for name in names}, False


def _step_of_adam(gradients: Gradients, rules: list[Rule]) -> None:
    """One fused kernel for all parameters with the same options."""
    alike: dict[tuple, list[tuple[Tensor, Tensor, dict[str, Tensor]]]] = {}
    for (w, gradient), (_, options, state) in zip(gradients, rules, strict=True):
        alike.setdefault((*options.values(),), []).append((w, gradient, state))
    for (lr, beta1, beta2, eps, decay, amsgrad, maximize, is_decoupled, _), members in alike.items():
        written: list[tuple[Tensor, Tensor]] = []
        lists: list[list[Tensor]] = [[], [], [], []]
        for weight, gradient, state in members:
            for held, tensors in zip((weight, *map(state.get, _MOMENTS)), lists, strict=True):
                if held is not None:
                    x = held.view(gradient.shape)
                    tensors.append(x.contiguous())  # the kernel goes through memory in order, whatever the strides
                    if tensors[-1] is not x:
                        written.append((x, tensors[-1]))
        steps = [state["step"] for *_, state in members]
        torch._foreach_add_(steps, 1)
        kernel: Any = torch._fused_adamw_ if is_decoupled else torch._fused_adam_
        kernel(
            lists[0],
            [_for_kernel(gradient) for _, gradient, _ in members],
            *lists[1:],
            steps,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=decay,
            eps=eps,
            amsgrad=amsgrad,
            maximize=maximize,
        )
        for x, result in written:
            x.copy_(result)


def _for_kernel(gradient: Tensor) -> Tensor:
    if not isinstance(gradient, FactoredGradient):
        return gradient
    (m, n), gradient = gradient.shape, gradient.renewed()  # a replay has written into the factors
    return gradient.to_dense() if m * n < SMALL or gradient.rank * (m + n) >= m * n else gradient


_DESCENT_NAMES = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
_ADAM_NAMES = ("lr", "beta1", "beta2", "eps", "weight_decay", "amsgrad", "maximize", "is_decoupled", "fused")
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
_descent = Kind(_DESCENT_NAMES, 2, _descent_options, check_types, _velocity, _descend, is_fused=False)
_adam = Kind(_ADAM_NAMES, 4, _adam_options, _check_adam, _moments, _step_of_adam, is_fused=True)


def _adamw_options(group: Mapping[str, Any]) -> tuple:
    *options, _, fused = _adam_options(group)
    return (*options, True, fused)


KINDS: dict[type[Optimizer], Kind] = {
    GradientDescent: _descent,
    SGD: _descent,
    Adam: _adam,
    AdamW: _adam._replace(read=_adamw_options),
}


def kind_of(optimizer: Any) -> Kind:
    """Raises TypeError for another optimizer, ValueError for an option that a step could not respect."""
    kind = KINDS.get(type(optimizer))
    if kind is None:
        raise TypeError(
            "TrainStep expected `optimizer` to be a GradientDescent, or torch.optim's SGD, Adam or AdamW, "
            f"got {type(optimizer).__name__}. Pass mg.GradientDescent(model.parameters(), lr=...), or train with autograd."
        )
    for group in optimizer.param_groups:
        for name in ("differentiable", "capturable"):
            if group.get(name):
                raise ValueError(
                    f"TrainStep expected an optimizer with {name}=False, got {name}=True. "
                    "Make it without, or train with autograd."
                )
        if kind.is_fused and any(p.is_cuda for p in group["params"]):
            raise ValueError(
                f"TrainStep expected a GradientDescent or SGD for parameters on a GPU, got {type(optimizer).__name__}. "
                "Pass one of these, or train with autograd."
            )
    return kind
