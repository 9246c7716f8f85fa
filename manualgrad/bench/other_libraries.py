"""The same training step in JAX and in scikit-learn, from the same weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

import manualgrad as mg
from manualgrad.bench.problem import Problem, Way, train_step


def with_jax(problem: Problem) -> Way:
    """`jax.jit` of the loss, its gradient and the update as one."""
    import jax

    sigma = {"sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu, "tanh": jax.numpy.tanh}[problem.activation]
    layers = problem.dense().children()
    state = [[jax.numpy.array(p.detach().numpy()) for p in layer.parameters()] for layer in layers]

    def loss(layers: Any, x: Any, y: Any) -> Any:
        for w, b in layers:
            x = sigma(x @ w.T + b)
        return 0.5 * ((x - y) ** 2).sum() / len(y)

    @jax.jit
    def descend(layers: Any, x: Any, y: Any) -> Any:
        cost, gradients = jax.value_and_grad(loss)(layers, x, y)
        return cost, jax.tree.map(lambda w, g: w - problem.lr * g, layers, gradients)

    x, y = (jax.numpy.array(tensor.numpy()) for tensor in problem.batch())

    def step() -> None:
        nonlocal state
        cost, state = descend(state, x, y)
        cost.block_until_ready()

    return Way(step, lambda: [torch.tensor(jax.device_get(p)) for layer in state for p in layer])


def with_sklearn(problem: Problem) -> Way:
    """`MLPRegressor.partial_fit`. It has no sigma on the last layer, where its gradient is that of the quadratic loss: it should
    reach the weights of such a net."""
    from sklearn.neural_network import MLPRegressor
    from threadpoolctl import threadpool_limits

    threadpool_limits(torch.get_num_threads())
    sigma = {"sigmoid": "logistic"}.get(problem.activation, problem.activation)
    regressor = MLPRegressor(hidden_layer_sizes=problem.sizes[1:-1], activation=sigma, solver="sgd", momentum=0, alpha=0,
                             nesterovs_momentum=False, learning_rate_init=problem.lr, batch_size=problem.rows)  # fmt: skip
    x, y = (tensor.numpy() for tensor in problem.batch())
    regressor.partial_fit(x, y)  # makes the weights, which then become ours
    open_ended = mg.MLP(problem.sizes, problem.activation)
    open_ended.load_state_dict(problem.dense().state_dict())
    pairs = list(zip(regressor.coefs_, regressor.intercepts_, strict=True))
    for layer, arrays in zip(open_ended.children(), pairs, strict=True):
        for array, p in zip(arrays, layer.parameters(), strict=True):
            array[:] = p.detach().numpy().T

    def weights() -> list[Tensor]:
        return [torch.tensor(array.T) for arrays in pairs for array in arrays]

    return Way(partial(regressor.partial_fit, x, y), weights, expected=train_step(problem, open_ended))
