"""PyTorch's configurations of SGD, and a layer to run each on, by GradientDescent and by SGD."""

import copy
from typing import Any

import torch
from torch import nn
from torch.testing._internal.common_optimizers import OptimizerInfo, optim_db, optim_inputs_func_sgd
from torch.testing._internal.common_utils import TestCase

import manualgrad as mg


SGD = next(info for info in optim_db if info.optim_cls is torch.optim.SGD)
DESCENT = OptimizerInfo(
    mg.GradientDescent,  # type: ignore[arg-type]  # annotated as an instance
    optim_inputs_func=optim_inputs_func_sgd,
    scheduler_inputs=SGD.scheduler_inputs,
    supported_impls=(),
    supports_sparse=True,
)


class DescentCase(TestCase):
    """Each configuration of SGD."""

    def configurations(self, info: Any, device: str) -> list[dict[str, Any]]:
        made = [{"lr": 1e-2, **example.kwargs} for example in info.optim_inputs_func(device=device)]
        assert len(made) == 9
        return made

    def twins(self, kwargs: dict[str, Any], factored: bool, device: str, **of_sgd: Any) -> Any:
        """A layer with GradientDescent, and with SGD the same by autograd."""
        layer = mg.Dense(200, 200, device=device, dtype=torch.float64)
        twin = nn.Linear(200, 200, device=device, dtype=torch.float64)
        twin.load_state_dict(layer.state_dict())
        ours = mg.GradientDescent(layer.parameters(), **copy.deepcopy(kwargs), factored=factored)
        theirs = torch.optim.SGD(twin.parameters(), **copy.deepcopy(kwargs), **of_sgd)
        return (layer, ours), (twin, theirs)

    def run_steps(self, model: nn.Module, optimizer: Any, steps: int = 5, schedulers: Any = ()) -> list[float]:
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(1)
        x = torch.randn(3, 200, generator=generator, dtype=torch.float64, device=device)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (model(x) - 1).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            for scheduler in schedulers:
                plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                scheduler.step(*([losses[-1]] if plateau else []))
        return losses

    def assert_same_weights(self, ours: nn.Module, theirs: nn.Module) -> None:
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            self.assertEqual(p, q, rtol=1e-12, atol=1e-13)
