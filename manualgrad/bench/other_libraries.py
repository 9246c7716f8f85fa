"""The same training step of a net in JAX, scikit-learn and NumPy, from the same weights.

Each function returns the step, a function for the weights, and the net whose weights it reaches if that is another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from manualgrad.bench.case import Case, Net
from manualgrad.bench.optimizers import DESCENT, OPTIMIZERS


Step = tuple[Callable[[], Any], Callable[[], list[Tensor]], str | None]


def _arrays(case: Case, dtype: Any = None) -> tuple[list[list[Any]], Any, Any]:
    """[w, b] of each layer, inputs and targets, as NumPy arrays of their own."""
    task = case.plain()
    layers = [[p.detach().numpy().astype(dtype) for p in layer.parameters()] for layer in task.model.children()]
    return [layer for layer in layers if layer], task.inputs.numpy().astype(dtype), task.targets.numpy().astype(dtype)


def jax_step(case: Case, net: Net) -> Step:
    """`jax.jit` of the loss, its gradient and the update, optax's, as one."""
    import jax
    import optax

    sigmas = {"sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu, "tanh": jax.numpy.tanh, None: lambda z: z}
    optimizers = {"adam": partial(optax.adam, 1e-3), "adamw": partial(optax.adamw, 1e-3, weight_decay=1e-2)}
    kind, options = OPTIMIZERS[case.optimizer]
    if kind is torch.optim.SGD:
        optimizer = optax.sgd(options["lr"], options.get("momentum"))
    elif case.optimizer in optimizers:
        optimizer = optimizers[case.optimizer]()
    else:
        raise ValueError(f"It is written here for SGD, {' and '.join(optimizers)}.")
    layers, x, y = jax.tree.map(jax.numpy.array, _arrays(case))
    state = layers, optimizer.init(layers)

    def loss(layers: Any, x: Any, y: Any) -> Any:
        for w, b in layers[:-1]:
            x = sigmas[net.activation](x @ w.T + b)
        w, b = layers[-1]
        return ((sigmas[net.output_activation](x @ w.T + b) - y) ** 2).mean()

    @jax.jit
    def descend(state: Any, x: Any, y: Any) -> Any:
        layers, memory = state
        cost, gradients = jax.value_and_grad(loss)(layers, x, y)
        updates, memory = optimizer.update(gradients, memory, layers)
        return cost, (optax.apply_updates(layers, updates), memory)

    def step() -> None:
        nonlocal state
        cost, state = descend(state, x, y)
        cost.block_until_ready()

    return step, lambda: [torch.tensor(jax.device_get(p)) for layer in state[0] for p in layer], None


def sklearn_step(case: Case, net: Net) -> Step:
    """`MLPRegressor.partial_fit`. It has no sigma on the outputs: it should reach the weights of such a net."""
    from sklearn.neural_network import MLPRegressor
    from threadpoolctl import threadpool_limits

    if OPTIMIZERS[case.optimizer] != DESCENT:
        raise ValueError("It is written here for gradient descent.")
    threadpool_limits(torch.get_num_threads())
    sizes, activation, _ = net
    open_ended = f"{'-'.join(map(str, sizes))} {activation}"
    layers, x, y = _arrays(case._replace(model=open_ended))
    lr = 2 / sizes[-1] * DESCENT[1]["lr"]  # its loss is 1/2 the sum over the outputs, where MSELoss takes the mean
    regressor = MLPRegressor(hidden_layer_sizes=sizes[1:-1], activation={"sigmoid": "logistic"}.get(activation, activation),
                             solver="sgd", momentum=0, nesterovs_momentum=False, alpha=0, learning_rate_init=lr,
                             batch_size=case.batch)  # fmt: skip
    regressor.partial_fit(x, y)  # makes the weights, which then become ours
    pairs = list(zip(regressor.coefs_, regressor.intercepts_, strict=True))
    for (w, b), (ours, bias) in zip(pairs, layers, strict=True):
        w[:], b[:] = ours.T, bias

    def weights() -> list[Tensor]:
        return [torch.tensor(array.T) for arrays in pairs for array in arrays]

    return partial(regressor.partial_fit, x, y), weights, open_ended


def numpy_step(case: Case, net: Net, dtype: str) -> Step:
    """The four equations for sigmoids, as one writes them down."""
    import numpy

    if net[1:] != ("sigmoid", "sigmoid") or OPTIMIZERS[case.optimizer] != DESCENT:
        raise ValueError("It is written here for sigmoids, on the outputs too, and gradient descent.")
    layers, x, y = _arrays(case, dtype)
    eta = DESCENT[1]["lr"]

    def step() -> None:
        activations = [x]
        for w, b in layers:
            activations.append(1 / (1 + numpy.exp(-(activations[-1] @ w.T + b))))
        a_gradient = 2 / y.size * (activations[-1] - y)
        for i in reversed(range(len(layers))):
            (w, b), a = layers[i], activations[i + 1]
            delta = a_gradient * a * (1 - a)
            if i > 0:
                a_gradient = delta @ w
            w -= eta * (delta.T @ activations[i])
            b -= eta * delta.sum(0)

    return step, lambda: [torch.tensor(p, dtype=torch.float32) for layer in layers for p in layer], None
