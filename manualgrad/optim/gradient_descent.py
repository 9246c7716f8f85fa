"""Gradient descent: w := w - eta * gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from manualgrad.equations import descent
from manualgrad.factored.requests import Request
from manualgrad.optim.gradient_descent_checks import as_list, check_flag, check_options, check_state, in_numbers
from manualgrad.optim.sgd_rule import update


class GradientDescent(Optimizer):
    r"""Gradient descent, with `torch.optim.SGD`'s options, arithmetic and state dict.

        g := dC/dw (negated if `maximize`) + weight_decay * w
        v := momentum * v + (1 - dampening) * g        (the first v is g)
        w := w - lr * g      without momentum
        w := w - lr * v      with momentum
        w := w - lr * (g + momentum * v)    nesterov

    Args:
        params: parameters, (name, parameter) pairs, or dicts of them with options of their own (param groups).
        lr: eta, the learning rate: a number >= 0 or a one-element tensor. Required, here or in every param group.
        momentum: in [0, 1].
        dampening: how much less the newest gradient counts in v.
        weight_decay: >= 0.
        nesterov: look ahead along v; needs momentum and no dampening.
        maximize: climb instead of descend.
        factored: let `Dense` hand over dC/dw as its factors where that saves memory (`FactoredGradient`).

    The state of a parameter is v, under SGD's key `momentum_buffer`: state dicts load both ways, and those of
    other optimizers are refused. `p.grad` is never changed.

    Raises:
        ValueError: an option out of range, naming it; no parameters.
        TypeError: no learning rate, an option that is not a number (or not True or False), parameters that are none.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor | None = None,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        factored: bool = True,
    ) -> None:
        if not isinstance(params, Tensor):  # which the base class refuses by itself
            params = as_list(params)
        check_flag("factored", factored)
        self.factored = factored
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            # SGD's choices of implementation. There is one here; the keys are kept so that state dicts interchange.
            "foreach": None,
            "differentiable": False,
            "fused": None,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own. Raises as the constructor does."""
        if isinstance(param_group, dict):
            check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        self._request_factors()

    def _request_factors(self) -> None:
        if self.factored:
            self._request = Request(w for group in self.param_groups for w in group["params"])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "factored": self.factored}  # the base class keeps only what it knows

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also what `load_state_dict` ends with. Raises ValueError for the state of another optimizer, before anything changes."""
        check_state(state)
        super().__setstate__(state)
        for group in self.param_groups:  # written by a release of torch that lacked the key
            for key in ("nesterov", "maximize", "differentiable"):
                group.setdefault(key, False)
            for key in ("foreach", "fused"):
                group.setdefault(key, None)
        self._request_factors()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on every parameter that has a gradient.

        Args:
            closure: computes the loss and its gradients anew, and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            TypeError: an option that was set since is of a wrong type, before its group has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            options = in_numbers(group)
            eta, with_momentum = options["lr"], options["momentum"] != 0
            is_plain = not (
                with_momentum or options["weight_decay"] != 0 or options["maximize"] or isinstance(eta, Tensor)
            )
            for w in group["params"]:
                gradient = w.grad
                if gradient is None:
                    continue
                if is_plain and type(gradient) is Tensor:
                    descent(w, gradient, eta, out=w)  # w := w - eta * gradient
                elif not with_momentum:
                    update(w, gradient, None, options)
                else:
                    state = self.state[w]
                    state["momentum_buffer"] = update(w, gradient, state.get("momentum_buffer"), options)
        return loss
