"""Lightning's `strategy="ddp"` with factored gradients: the weights of one process on the joined batch, on every rank."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed, multiprocessing
from torch.utils.data import DataLoader, TensorDataset

import manualgrad as mg
from manualgrad.factored import choice
from tests.factored.nets import batch, net, twin
from tests.lightning.test_factored import Regression, trainer


SAMPLES, ROWS = 32, 4  # 8 joined batches
VARIANTS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "by name": (lambda: "ddp", {}),
    "bucket views": (lambda: DDPStrategy(gradient_as_bucket_view=True), {}),
    "static graph": (lambda: DDPStrategy(static_graph=True), {}),
    "accumulation": (lambda: "ddp", {"accumulate_grad_batches": 2}),
    "clipping": (lambda: "ddp", {"gradient_clip_val": 0.05}),
}


class OwnPart:
    """Of each joined batch the rows of one rank, in order. Left to itself Lightning would deal the samples out shuffled."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __iter__(self) -> Iterator[list[int]]:
        size = ROWS // 2
        for start in range(self.rank * size, SAMPLES, ROWS):
            yield list(range(start, start + size))

    def __len__(self) -> int:
        return SAMPLES // ROWS


def fit(module: Regression, folder: Path, batches: Any, **options: Any) -> None:
    data = DataLoader(TensorDataset(*batch(SAMPLES)), batch_sampler=batches)
    run = trainer(folder, precision="64-true", max_epochs=2, use_distributed_sampler=False, **options)
    run.fit(module, data)


def process(rank: int, port: int, folder: str, results: str) -> None:
    torch.set_num_threads(1)
    choice.SMALLEST_FACTORED_WEIGHT = 0
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {
        **where,
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
    }  # as a cluster does, so that nothing more is started
    outcome = {}
    for name, (strategy, options) in VARIANTS.items():
        module = Regression(net(), mg.GradientDescent)
        fit(module, Path(folder), OwnPart(rank), strategy=strategy(), devices=2, **options)
        # DDP puts its buckets' views in place of the gradients where it is asked to, factored or not
        assert set(module.seen) == {Tensor if name == "bucket views" else mg.FactoredGradient}
        outcome[name] = [p.detach() for p in module.parameters()]
    torch.save(outcome, f"{results}.{rank}")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    folder = tmp_path_factory.mktemp("lightning_ddp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = str(folder / "results")
    multiprocessing.spawn(process, args=(port, str(folder), results), nprocs=2)
    return [torch.load(f"{results}.{rank}") for rank in range(2)]


def weights_of_one_process(folder: Path, batches: Any, options: dict[str, Any]) -> list[Tensor]:
    alone = Regression(twin(net()), torch.optim.SGD)
    fit(alone, folder, batches, **options)
    return [p.detach() for p in alone.parameters()]


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_train_as_one(name: str, trained: Any, tmp_path: Path) -> None:
    joined = [range(start, start + ROWS) for start in range(0, SAMPLES, ROWS)]
    expected = weights_of_one_process(tmp_path, joined, VARIANTS[name][1])
    for rank in range(2):
        torch.testing.assert_close(trained[rank][name], expected, rtol=1e-12, atol=1e-12)


def test_the_comparison_above_sees_a_process_that_trains_alone(trained: Any, tmp_path: Path) -> None:
    alone = weights_of_one_process(tmp_path, OwnPart(0), {})
    differences = [float((p - q).abs().max()) for p, q in zip(trained[0]["by name"], alone, strict=True)]
    assert min(differences) > 1e-3
