"""A training step of the same net by TrainStep and by its rivals: each a function that takes one step on one batch.

All start from the same weights, and `weights()` gives what they have become, so that a measurement can check them. Scikit-learn
has no sigma on its last layer: it is checked against a net of the same weights without one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import manualgrad as mg


LR = 0.001


@dataclass(frozen=True)
class Net:
    """A net, its batch and, for the losses' sake, its number of outputs: quadratic loss, sigmoid or relu everywhere."""

    sizes: tuple[int, ...]
    batch: int
    activation: str

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.sizes))} {self.activation}, batch {self.batch}"


@dataclass(frozen=True)
class Rival:
    """One way to take the step."""

    name: str
    step: Callable[[], Any]
    weights: Callable[[], list[Tensor]]
    expected: Rival | None = None  # whose weights it should reach, if not those of the first


def rivals(net: Net, compiled: bool) -> list[Rival]:
    """TrainStep first, then every rival that is installed here. `compiled` adds torch.compile, which takes a while."""
    model = mg.MLP(net.sizes, net.activation, output_activation=net.activation)
    inputs, targets = torch.randn(net.batch, net.sizes[0]), torch.rand(net.batch, net.sizes[-1])
    found = [_train_step(copy.deepcopy(model), inputs, targets)]
    for name, options in (("loop", {"foreach": False}), ("foreach", {"foreach": True}), ("fused", {"fused": True})):
        found.append(_autograd(f"autograd + SGD ({name})", _plain(model, net), inputs, targets, options))
    if compiled:
        found.append(_compiled(_plain(model, net), inputs, targets))
    if find_spec("jax") is not None:
        found.append(_jax(model, net, inputs, targets))
    if find_spec("sklearn") is not None:
        found.append(_sklearn(model, net, inputs, targets))
    return found


def _plain(model: nn.Module, net: Net) -> nn.Sequential:
    """The same net from torch.nn alone."""
    sigma = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}[net.activation]
    modules: list[nn.Module] = []
    for n, m, layer in zip(net.sizes[:-1], net.sizes[1:], model.children(), strict=True):
        linear = nn.Linear(n, m)
        linear.load_state_dict(layer.state_dict())
        modules += [linear, sigma()]
    return nn.Sequential(*modules)


def _quadratic(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * nn.functional.mse_loss(outputs, targets, reduction="sum") / len(outputs)


def _train_step(model: nn.Module, inputs: Tensor, targets: Tensor) -> Rival:
    step = mg.TrainStep(model, mg.QuadraticLoss(), mg.GradientDescent(model.parameters(), lr=LR))
    return Rival("TrainStep", lambda: step(inputs, targets), lambda: [p.detach() for p in model.parameters()])


def _autograd(name: str, model: nn.Module, inputs: Tensor, targets: Tensor, options: dict[str, Any]) -> Rival:
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, **options)

    def step() -> None:
        optimizer.zero_grad()
        _quadratic(model(inputs), targets).backward()
        optimizer.step()

    return Rival(name, step, lambda: [p.detach() for p in model.parameters()])


def _compiled(model: nn.Module, inputs: Tensor, targets: Tensor) -> Rival:
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    cost = torch.compile(lambda x, y: _quadratic(model(x), y))
    descend = torch.compile(optimizer.step)

    def step() -> None:
        optimizer.zero_grad()
        cost(inputs, targets).backward()
        descend()

    return Rival("torch.compile", step, lambda: [p.detach() for p in model.parameters()])


def _jax(model: nn.Module, net: Net, inputs: Tensor, targets: Tensor) -> Rival:
    import jax

    sigma = {"sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu}[net.activation]
    state = [[jax.numpy.array(p.detach().numpy()) for p in layer.parameters()] for layer in model.children()]

    def cost(layers: Any, x: Any, y: Any) -> Any:
        for w, b in layers:
            x = sigma(x @ w.T + b)
        return 0.5 * ((x - y) ** 2).sum() / len(y)

    @jax.jit
    def descend(layers: Any, x: Any, y: Any) -> Any:
        loss, gradients = jax.value_and_grad(cost)(layers, x, y)
        return loss, jax.tree.map(lambda w, g: w - LR * g, layers, gradients)

    x, y = jax.numpy.array(inputs.numpy()), jax.numpy.array(targets.numpy())

    def step() -> None:
        nonlocal state
        loss, state = descend(state, x, y)
        loss.block_until_ready()

    return Rival("JAX jit", step, lambda: [torch.tensor(jax.device_get(p)) for layer in state for p in layer])


def _sklearn(model: nn.Module, net: Net, inputs: Tensor, targets: Tensor) -> Rival:
    """`MLPRegressor.partial_fit`, whose gradient is that of our quadratic loss on a last layer without sigma."""
    from sklearn.neural_network import MLPRegressor
    from threadpoolctl import threadpool_limits

    threadpool_limits(torch.get_num_threads())
    sigma = {"sigmoid": "logistic", "relu": "relu"}[net.activation]
    regressor = MLPRegressor(hidden_layer_sizes=net.sizes[1:-1], activation=sigma, solver="sgd", momentum=0, alpha=0,
                             nesterovs_momentum=False, learning_rate_init=LR, batch_size=net.batch)  # fmt: skip
    x, y = inputs.numpy(), targets.numpy()
    regressor.partial_fit(x, y)  # makes the weights, which then become ours
    for layer, *arrays in zip(model.children(), regressor.coefs_, regressor.intercepts_, strict=True):
        for array, p in zip(arrays, layer.parameters(), strict=True):
            array[:] = p.detach().numpy().T

    def weights() -> list[Tensor]:
        pairs = zip(regressor.coefs_, regressor.intercepts_, strict=True)
        return [torch.tensor(array) for w, b in pairs for array in (w.T, b)]

    open_ended = mg.MLP(net.sizes, net.activation)
    open_ended.load_state_dict(model.state_dict())
    expected = _train_step(open_ended, inputs, targets)
    return Rival("scikit-learn", lambda: regressor.partial_fit(x, y), weights, expected)
