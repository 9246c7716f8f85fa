"""Nets whose gradients stay factored, beside a twin of plain linear layers with the same weights."""

import copy

import torch
from torch import Tensor, nn

import manualgrad as mg


SIZES = (40, 50, 30)  # up to 17 rows are smaller than either gradient


def net(dtype: torch.dtype = torch.float64, seed: int = 0) -> mg.MLP:
    torch.manual_seed(seed)
    return mg.MLP(SIZES, "tanh", dtype=dtype)


def twin(model: mg.MLP) -> nn.Sequential:
    first, second = (nn.Linear(*pair, dtype=model[0].weight.dtype) for pair in zip(SIZES[:-1], SIZES[1:], strict=True))
    for layer, dense in zip((first, second), model, strict=True):
        layer.load_state_dict(dense.state_dict())
    return nn.Sequential(first, nn.Tanh(), second)


def batch(rows: int = 3, seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, SIZES[0], generator=generator, dtype=dtype)
    return x, torch.randn(rows, SIZES[-1], generator=generator, dtype=dtype)


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in copy.deepcopy(model).parameters()]


def assert_same_weights(model: nn.Module, other: nn.Module, tolerance: float = 1e-12) -> None:
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=tolerance, atol=tolerance)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, rows: int = 3, micro_batches: int = 1
) -> None:
    for i in range(steps):
        optimizer.zero_grad()
        for j in range(micro_batches):
            x, y = batch(rows, seed=100 * i + j, dtype=next(model.parameters()).dtype)
            nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
