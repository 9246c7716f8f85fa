"""Exercises of notebook 5: gradient descent."""

from __future__ import annotations

import torch
from torch import Tensor

from .exercise import Exercise, Function, given, numbers, quadratic


def momentum_update(w: Tensor, gradient: Tensor, v: Tensor, eta: float, mu: float) -> tuple[Tensor, Tensor]:
    v = mu * v + gradient
    return w - eta * v, v


def train_step(w1: Tensor, w2: Tensor, x: Tensor, y: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    a1 = torch.sigmoid(x @ w1.T)  # forward
    a2 = torch.sigmoid(a1 @ w2.T)
    delta2 = (a2 - y) / len(x) * a2 * (1 - a2)  # output error
    delta1 = (delta2 @ w2) * a1 * (1 - a1)  # backpropagated error, through the w2 of the forward pass
    return w1 - eta * delta1.T @ x, w2 - eta * delta2.T @ a1  # gradients and descent


def _sgd(w: Tensor, gradient: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's own: eta = 0.5, mu = 0.9."""
    leaf = w.detach().clone().requires_grad_()
    leaf.grad = gradient.detach().clone()
    optimizer = torch.optim.SGD([leaf], lr=0.5, momentum=0.9)
    optimizer.state[leaf]["momentum_buffer"] = v.detach().clone()
    optimizer.step()
    return leaf.detach(), optimizer.state[leaf]["momentum_buffer"]


MOMENTUM_UPDATE = Exercise(
    solution=momentum_update,
    inputs=numbers((4, 3), (4, 3), (4, 3)),
    layer=lambda function: lambda w, gradient, v: given(function, w, gradient, v, 0.5, 0.9),
    reference=_sgd,
    names=("w", "v"),
    is_backward=False,
    mistakes={
        "The sign is wrong: w goes downhill, w - eta v.": lambda w, g, v, eta, mu: (w + eta * (mu * v + g), mu * v + g),
        "The old v moves w: make the new v first, and use that.": lambda w, g, v, eta, mu: (w - eta * v, mu * v + g),
        "eta is missing: the step is eta v.": lambda w, g, v, eta, mu: (w - (mu * v + g), mu * v + g),
        "That is a running mean: here the gradient is added whole, v = mu v + gradient, without 1 - mu.": (
            lambda w, g, v, eta, mu: (w - eta * (mu * v + (1 - mu) * g), mu * v + (1 - mu) * g)
        ),
        "eta stands in v: there v gathers gradients, and eta multiplies v when w moves.": lambda w, g, v, eta, mu: (
            w - (mu * v + eta * g),
            mu * v + eta * g,
        ),
        "mu is missing: v keeps a part mu of itself.": lambda w, g, v, eta, mu: (w - eta * (v + g), v + g),
        "The new v is not returned: the next step needs it.": lambda w, g, v, eta, mu: (w - eta * (mu * v + g), v),
    },
)


def _step_by_autograd(w1: Tensor, w2: Tensor, x: Tensor, y: Tensor) -> list[Tensor]:
    leaves = [w.detach().clone().requires_grad_() for w in (w1, w2)]
    with torch.enable_grad():
        quadratic(torch.sigmoid(torch.sigmoid(x @ leaves[0].T) @ leaves[1].T), y).backward()
    torch.optim.SGD(leaves, lr=0.5).step()
    return [w.detach() for w in leaves]


def _step(w1: Tensor, w2: Tensor, x: Tensor, y: Tensor, eta: float, fault: str = "") -> tuple[Tensor, Tensor]:
    a1 = torch.sigmoid(x @ w1.T)
    a2 = torch.sigmoid(a1 @ w2.T)
    delta2 = (a2 - y) / (1 if fault == "mean" else len(x)) * (1 if fault == "slope 2" else a2 * (1 - a2))
    new_w2 = w2 - eta * delta2.T @ a1
    delta1 = (delta2 @ (new_w2 if fault == "order" else w2)) * (1 if fault == "slope 1" else a1 * (1 - a1))
    if fault == "sign":
        return w1 + eta * delta1.T @ x, w2 + eta * delta2.T @ a1
    return w1 - eta * delta1.T @ x, new_w2


def _with_fault(fault: str) -> Function:
    return lambda w1, w2, x, y, eta: _step(w1, w2, x, y, eta, fault)


TRAIN_STEP = Exercise(
    solution=train_step,
    inputs=numbers((4, 3), (2, 4), (5, 3), (5, 2)),
    layer=lambda function: lambda w1, w2, x, y: given(function, w1, w2, x, y, 0.5),
    reference=_step_by_autograd,
    names=("w1", "w2"),
    is_backward=False,
    mistakes={
        "w2 is updated too early: delta1 must come back through the w2 of the forward pass, so find both deltas first.": (
            _with_fault("order")
        ),
        "sigma' of the hidden layer is missing: look at delta1.": _with_fault("slope 1"),
        "sigma' of the output layer is missing: look at delta2.": _with_fault("slope 2"),
        "The mean over the batch is missing: look at the first line of delta2, (a2 - y) / r.": _with_fault("mean"),
        "The sign is wrong: the weights climb, w + eta dC/dw, and C grows.": _with_fault("sign"),
    },
)

EXERCISES = [MOMENTUM_UPDATE, TRAIN_STEP]
