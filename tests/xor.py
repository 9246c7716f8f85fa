"""XOR, a 2-3-1 net of sigmoids and the quadratic loss: the example that can be computed by hand, with the hand's numbers."""

from typing import Any

import torch

import manualgrad as mg
from tests.by_hand import Column, Matrix, Network, sigma_prime


X = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
Y = [[0.0], [1.0], [1.0], [0.0]]
ETA = 0.5
INPUTS, TARGETS = torch.tensor(X, dtype=torch.float64), torch.tensor(Y, dtype=torch.float64)


def xor_net() -> mg.MLP:
    return mg.MLP([2, 3, 1], "sigmoid", "sigmoid", dtype=torch.float64)


def xor_trace(model: mg.MLP) -> mg.Trace:
    return mg.trace(model, mg.QuadraticLoss(), INPUTS, TARGETS, mg.GradientDescent(model.parameters(), lr=ETA))


def hand_of(model: mg.MLP) -> Network:
    layers: list[Any] = list(model)
    return Network([layer.weight.tolist() for layer in layers], [layer.bias.tolist() for layer in layers])


def hand_numbers(model: mg.MLP) -> list[dict[str, Any]]:
    """Every field of every `TracedLayer` as nested lists; after them {"loss", "output_gradient", "outputs"}.

    The cost is a mean over the batch, so what one sample contributes is divided by their number.
    """
    network, after, r = hand_of(model), hand_of(model), len(X)
    batch = list(zip(X, Y, strict=True))
    forward = [network.forward(x) for x in X]
    deltas = [network.backpropagate(x, y) for x, y in batch]
    weight_gradients, bias_gradients = network.gradients(batch)
    cost = after.train_on(batch, ETA)
    outputs = [activations[-1] for _, activations in forward]
    numbers: list[dict[str, Any]] = []
    for layer in range(len(network.weights)):
        zs: list[Column] = [z[layer] for z, _ in forward]
        errors: Matrix = [[d / r for d in delta[layer]] for delta in deltas]
        slopes = [[sigma_prime(z) for z in row] for row in zs]
        numbers.append(
            {
                "inputs": [activations[layer] for _, activations in forward],
                "z": zs,
                "a": [activations[layer + 1] for _, activations in forward],
                "derivative": slopes,
                "cost_gradient": [
                    [d / s for d, s in zip(*rows, strict=True)] for rows in zip(errors, slopes, strict=True)
                ],
                "delta": errors,
                "grad_weight": weight_gradients[layer],
                "grad_bias": bias_gradients[layer],
                "weight_before": network.weights[layer],
                "weight_after": after.weights[layer],
                "bias_before": network.biases[layer],
                "bias_after": after.biases[layer],
            }
        )
    gradient = [[(a - t) / r for a, t in zip(*rows, strict=True)] for rows in zip(outputs, Y, strict=True)]
    return [*numbers, {"loss": cost, "output_gradient": gradient, "outputs": outputs}]
