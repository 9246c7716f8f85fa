"""`strategy="ddp_factored"`: the weights of one process on the joined batch, and the checkpoints of "ddp"."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.strategies import StrategyRegistry
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, TensorDataset

import manualgrad as mg
from manualgrad.distributed.exchange import exchange_of
from manualgrad.factored import choice
from manualgrad.lightning import BackpropModule, DigitsDataModule, FactoredDDPStrategy
from tests.distributed.processes import spawned
from tests.factored.nets import batch, net
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


class Validated(Regression):
    """With a validation loop after each epoch: DDP's forward pass without gradients."""

    def validation_step(self, pair: tuple[Tensor, Tensor]) -> None:
        self.log("validation", nn.functional.mse_loss(self.model(pair[0]), pair[1]), sync_dist=True)


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
    outcome |= resumed(rank, folder) | in_half_precision(rank, folder) | validated(rank, folder) | digits(folder)
    by_step = BackpropModule([8, 8, 3], engine="train_step")
    try:
        fit(by_step, folder, OwnPart(rank), strategy=strategy(), devices=2)  # type: ignore[arg-type]
    except Exception as error:
        outcome["train_step"] = f"{error}"
    distributed.destroy_process_group()
    return outcome


def resumed(rank: int, folder: Path) -> dict[str, list[Tensor]]:
    """Four epochs, and two from the checkpoint that two epochs have left: the bits, by way."""
    data = DataLoader(TensorDataset(*batch(SAMPLES)), batch_sampler=OwnPart(rank))
    outcome = {}
    for name, epochs, start in (("through", 4, None), ("half", 2, None), ("resumed", 4, folder / "half.ckpt")):
        module = Regression(net(seed=5 if start else 0), mg.GradientDescent)
        run = trainer(
            folder,
            precision="64-true",
            max_epochs=epochs,
            use_distributed_sampler=False,
            strategy=strategy(),
            devices=2,
        )
        run.fit(module, data, ckpt_path=start)
        if name == "half":
            run.save_checkpoint(folder / "half.ckpt")
            plain = Regression(net(), mg.GradientDescent)
            keys = torch.load(folder / "half.ckpt", weights_only=False)["state_dict"].keys()
            outcome["checkpoint is that of ddp"] = [torch.tensor(keys == plain.state_dict().keys())]
        outcome[name] = [p.detach().clone() for p in module.parameters()]
    return outcome


def in_half_precision(rank: int, folder: Path) -> dict[str, Any]:
    """bf16-mixed, by strategy."""
    outcome: dict[str, Any] = {}
    for name, chosen in (("bf16-mixed", strategy()), ("bf16-mixed, ddp", "ddp")):
        module = Regression(net(torch.float32), mg.GradientDescent)
        data = DataLoader(TensorDataset(*batch(SAMPLES, dtype=torch.float32)), batch_sampler=OwnPart(rank))
        options = {"use_distributed_sampler": False, "strategy": chosen, "devices": 2}
        trainer(folder, precision="bf16-mixed", max_epochs=2, **options).fit(module, data)
        outcome[name] = [p.detach().clone() for p in module.parameters()]
        outcome[name + ", seen"] = set(module.seen)
    return outcome


def validated(rank: int, folder: Path) -> dict[str, Any]:
    outcome: dict[str, Any] = {}
    for name, chosen in (("validation", strategy()), ("validation, ddp", "ddp")):
        module = Validated(net(), mg.GradientDescent)
        data = DataLoader(TensorDataset(*batch(SAMPLES)), batch_sampler=OwnPart(rank))
        options = {"use_distributed_sampler": False, "strategy": chosen, "devices": 2}
        run = trainer(folder, precision="64-true", max_epochs=3, **options)
        run.fit(module, data, data)
        outcome[name] = float(run.callback_metrics["validation"])
    return outcome


def digits(folder: Path) -> dict[str, float]:
    """Accuracy on the test images, by strategy."""
    outcome = {}
    for name, chosen in (("digits", strategy()), ("digits, ddp", "ddp")):
        seed_everything(0, verbose=False)
        data, module = DigitsDataModule(batch_size=32), BackpropModule([64, 128, 10], "relu", lr=0.1, momentum=0.9)
        run = trainer(folder, max_epochs=5, strategy=chosen, devices=2)
        run.fit(module, datamodule=data)
        outcome[name] = float(run.test(module, datamodule=data, verbose=False)[0]["test_accuracy"])
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


def test_a_run_from_a_checkpoint_ends_as_one_without_a_break(trained: Any) -> None:
    for outcome in trained:
        assert bool(outcome["checkpoint is that of ddp"][0])
        for p, q, half in zip(outcome["resumed"], outcome["through"], outcome["half"], strict=True):
            assert torch.equal(p, q) and not torch.equal(p, half)


def test_half_precision_trains_as_under_ddp(trained: Any) -> None:
    for outcome in trained:
        torch.testing.assert_close(outcome["bf16-mixed"], outcome["bf16-mixed, ddp"], rtol=2e-3, atol=2e-3)
        assert outcome["bf16-mixed, seen"] == {mg.FactoredGradient}
    for p, q in zip(*(outcome["bf16-mixed"] for outcome in trained), strict=True):
        assert torch.equal(p, q)


def test_validation_is_that_of_ddp(trained: Any) -> None:
    for outcome in trained:
        assert outcome["validation"] == pytest.approx(outcome["validation, ddp"], rel=1e-12)


def test_digits_are_learnt_as_under_ddp(trained: Any) -> None:
    for outcome in trained:
        assert outcome["digits"] == pytest.approx(outcome["digits, ddp"], abs=0.01) and outcome["digits"] > 0.9


def test_it_is_known_by_name(tmp_path: Path) -> None:
    assert "ddp_factored" in StrategyRegistry.available_strategies()
    made = trainer(tmp_path, strategy="ddp_factored", devices=2)
    assert isinstance(made.strategy, FactoredDDPStrategy)
