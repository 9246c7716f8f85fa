"""PyTorch's configurations of SGD, and a race of the two optimizers."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.testing._internal.common_optimizers import optim_db, optim_inputs_func_sgd

import manualgrad as mg


SGD_INFO = next(info for info in optim_db if info.optim_cls is SGD)
CONFIGURATIONS = {example.desc: {"lr": 1e-3, **example.kwargs} for example in optim_inputs_func_sgd("cpu")}
each_configuration = pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS)


class Race:
    """The same model twice, one with each optimizer, fed the same batches."""

    def __init__(self, options: dict[str, Any], dtype: torch.dtype = torch.float64) -> None:
        self.models = mg.MLP([5, 7, 3], "tanh", dtype=dtype), mg.MLP([5, 7, 3], "tanh", dtype=dtype)
        self.models[1].load_state_dict(self.models[0].state_dict())
        self.optimizers: list[Optimizer] = [
            mg.GradientDescent(self.models[0].parameters(), **copy.deepcopy(options)),
            SGD(self.models[1].parameters(), **copy.deepcopy(options)),
        ]
        self.random = torch.Generator().manual_seed(1)
        self.dtype = dtype

    def batch(self) -> tuple[Tensor, Tensor]:
        x = torch.randn(6, 5, generator=self.random, dtype=self.dtype)
        return x, torch.randn(6, 3, generator=self.random, dtype=self.dtype)

    def step(self, closure: bool = False) -> list[float]:
        x, y = self.batch()
        losses = []
        for model, optimizer in zip(self.models, self.optimizers, strict=True):

            def evaluate(model: nn.Module = model, optimizer: Optimizer = optimizer) -> Tensor:
                assert torch.is_grad_enabled()
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(x), y)
                loss.backward()
                return loss

            if closure:
                losses.append(optimizer.step(evaluate).item())  # type: ignore[arg-type, attr-defined]
            else:
                losses.append(evaluate().item())
                assert optimizer.step() is None
        return losses

    def assert_even(self) -> None:
        for ours, theirs in zip(*(model.parameters() for model in self.models), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
