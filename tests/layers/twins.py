"""What each activation is compared with, and random tensors to do it on."""

import torch
from torch import Tensor, nn


TWINS: dict[str, nn.Module] = {
    "identity": nn.Identity(),
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(),
    "elu": nn.ELU(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "softplus": nn.Softplus(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
}
COMPLEX = ["identity", "sigmoid", "tanh"]
SHAPES = [(3,), (4, 3), (1, 3), (0, 3), (2, 5, 3), (2, 0, 3), (2, 1, 2, 1, 3)]


def double(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)
