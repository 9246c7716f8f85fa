"""`strategy="ddp_factored"`: the weights of one process on the joined batch, and the checkpoints of "ddp"."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import StrategyRegistry
from torch import Tensor, distributed, nn

import manualgrad as mg
from manualgrad.distributed.exchange import exchange_of
from manualgrad.factored import choice
from manualgrad.lightning import BackpropModule, FactoredDDPStrategy
from tests.distributed.processes import spawned
from tests.factored.nets import net
from tests.lightning.test_factored import Regression, trainer
from tests.lightning.test_factored_ddp import ROWS, SAMPLES, OwnPart, fit, weights_of_one_process


class ByHand(Regression):
    """The same under manual optimization."""

    def __init__(self, model: nn.Module, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        super().__init__(model, optimizer)
        self.automatic_optimization = False

    def training_step(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(pair)
        self.manual_backward(loss)
        optimizer.step()
        return loss


VARIANTS: dict[str, tuple[type[Regression], dict[str, Any]]] = {
    "by name": (Regression, {}),
    "accumulation": (Regression, {"accumulate_grad_batches": 2}),
    "clipping by norm": (Regression, {"gradient_clip_val": 0.05}),
    "clipping by value": (Regression, {"gradient_clip_val": 0.001, "gradient_clip_algorithm": "value"}),
    "manual optimization": (ByHand, {}),
}


def strategy() -> FactoredDDPStrategy:
    return FactoredDDPStrategy(bandwidth=1e3)  # a link on which factors are always worth it


def process(rank: int, world: int, port: int, folder: Path) -> dict[str, Any]:
    choice.SMALLEST_FACTORED_WEIGHT = 0
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}  # as a cluster does, so that nothing more is started
    outcome: dict[str, Any] = {}
    for name, (module_class, options) in VARIANTS.items():
        module = module_class(net(seed=rank), mg.GradientDescent)
        if rank == 0:
            expected = module.state_dict().keys()
        fit(module, folder, OwnPart(rank), strategy=strategy(), devices=2, **options)
        outcome[name] = [p.detach() for p in module.parameters()]
        outcome[name + ", seen"] = set(module.seen)
        assert exchange_of(module) is None  # another Trainer may fit it with another strategy
        assert rank or module.state_dict().keys() == expected
    by_step = BackpropModule([8, 8, 3], engine="train_step")
    try:
        fit(by_step, folder, OwnPart(rank), strategy=strategy(), devices=2)  # type: ignore[arg-type]
    except Exception as error:
        outcome["train_step"] = f"{error}"
    distributed.destroy_process_group()
    return outcome


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return spawned(2, process, port, tmp_path_factory.mktemp("ddp_factored"))


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_train_as_one(name: str, trained: Any, tmp_path: Path) -> None:
    joined = [range(start, start + ROWS) for start in range(0, SAMPLES, ROWS)]
    expected = weights_of_one_process(tmp_path, joined, VARIANTS[name][1])
    for outcome in trained:
        torch.testing.assert_close(outcome[name], expected, rtol=1e-12, atol=1e-12)
    for p, q in zip(*(outcome[name] for outcome in trained), strict=True):
        assert torch.equal(p, q)


def test_the_optimizer_sees_factors(trained: Any) -> None:
    assert trained[0]["by name, seen"] == trained[1]["accumulation, seen"] == {mg.FactoredGradient}


def test_the_engine_train_step_is_refused_by_name(trained: Any) -> None:
    for outcome in trained:
        assert outcome["train_step"].startswith('engine="train_step" expected a single process, got 2')


def test_it_is_known_by_name(tmp_path: Path) -> None:
    assert "ddp_factored" in StrategyRegistry.available_strategies()
    made = trainer(tmp_path, strategy="ddp_factored", devices=2)
    assert isinstance(made.strategy, FactoredDDPStrategy)
