"""The same network a second time: one sample, one layer, one number at a time, straight from the four equations.

Symbols and layout are the text's: a and z are columns, w[j][k] leads from neuron k to neuron j. Plain Python numbers and
lists; nothing here knows tensors, batches or manualgrad. Layers count from 0, so that `weights[l]` makes `z[l]` from `a[l]`.

    delta^L = (a^L - y) * sigma'(z^L)                     output error
    delta^l = ((w^{l+1})^T delta^{l+1}) * sigma'(z^l)     backpropagated error
    dC/dw^l = delta^l (a^{l-1})^T,   dC/db^l = delta^l    gradients
    w^l := w^l - eta dC/dw^l,  b^l := b^l - eta dC/db^l   gradient descent
"""

import math


Column = list[float]
Matrix = list[list[float]]


def sigma(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def sigma_prime(z: float) -> float:
    return sigma(z) * (1 - sigma(z))


class Network:
    """Sigmoid layers, trained on the quadratic cost 1/2 |a^L - y|^2, averaged over a batch."""

    def __init__(self, weights: list[Matrix], biases: list[Column]) -> None:
        self.weights = weights
        self.biases = biases

    def forward(self, x: Column) -> tuple[list[Column], list[Column]]:
        """Every z, and every a beginning with x."""
        zs: list[Column] = []
        activations = [x]
        for w, b in zip(self.weights, self.biases, strict=True):
            a = activations[-1]
            z = [sum(w_jk * a_k for w_jk, a_k in zip(w_j, a, strict=True)) + b_j for w_j, b_j in zip(w, b, strict=True)]
            zs.append(z)
            activations.append([sigma(z_j) for z_j in z])
        return zs, activations

    def cost(self, x: Column, y: Column) -> float:
        _, activations = self.forward(x)
        return sum((a_j - y_j) ** 2 for a_j, y_j in zip(activations[-1], y, strict=True)) / 2

    def backpropagate(self, x: Column, y: Column) -> list[Column]:
        """delta of every layer, for one sample."""
        zs, activations = self.forward(x)
        outputs = zip(activations[-1], y, zs[-1], strict=True)
        deltas = [[(a_j - y_j) * sigma_prime(z_j) for a_j, y_j, z_j in outputs]]
        for layer in range(len(self.weights) - 2, -1, -1):
            w_above, delta_above, z = self.weights[layer + 1], deltas[0], zs[layer]
            delta = []
            for k in range(len(z)):
                transposed_times_delta = sum(w_above[j][k] * delta_above[j] for j in range(len(delta_above)))
                delta.append(transposed_times_delta * sigma_prime(z[k]))
            deltas.insert(0, delta)
        return deltas

    def gradients(self, batch: list[tuple[Column, Column]]) -> tuple[list[Matrix], list[Column]]:
        """dC/dw and dC/db of every layer, the means over the batch."""
        weight_gradients = [[[0.0] * len(w_j) for w_j in w] for w in self.weights]
        bias_gradients = [[0.0] * len(b) for b in self.biases]
        for x, y in batch:
            _, activations = self.forward(x)
            for layer, delta in enumerate(self.backpropagate(x, y)):
                for j, delta_j in enumerate(delta):
                    bias_gradients[layer][j] += delta_j / len(batch)
                    for k, a_k in enumerate(activations[layer]):
                        weight_gradients[layer][j][k] += delta_j * a_k / len(batch)
        return weight_gradients, bias_gradients

    def train_on(self, batch: list[tuple[Column, Column]], eta: float) -> float:
        """One step of gradient descent on the mean gradient of the batch. Returns its mean cost before the step."""
        cost = sum(self.cost(x, y) for x, y in batch) / len(batch)
        weight_gradients, bias_gradients = self.gradients(batch)
        for layer, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            for j in range(len(b)):
                b[j] -= eta * bias_gradients[layer][j]
                for k in range(len(w[j])):
                    w[j][k] -= eta * weight_gradients[layer][j][k]
        return cost
