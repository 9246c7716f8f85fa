"""A process that is killed in mid training: the others end with an error, as with plain DDP and as soon."""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

import manualgrad as mg
from manualgrad.distributed import exchange_factors
from manualgrad.factored import choice
from tests.distributed.cases import SLOW, Net, rows


pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
WORLD, KILLED = 3, 1
PATIENCE = 60  # seconds until a collective gives up: an error that comes before was not a timeout


def process(rank: int, folder: Path, exchanged: bool, when: str) -> None:
    torch.set_num_threads(1)
    choice.SMALLEST_FACTORED_WEIGHT = 0
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", rendezvous, rank=rank, world_size=WORLD, timeout=timedelta(seconds=PATIENCE))
    torch.manual_seed(0)
    net = Net().double()
    wrapper = DistributedDataParallel(exchange_factors(net, bandwidth=SLOW) if exchanged else net)
    descent = mg.GradientDescent(net.parameters(), lr=0.02)

    def die(*_: object) -> None:
        (folder / "killed").write_text(f"{time.time()}")
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        for step in range(1000):
            if step == 3 and rank == KILLED:
                die() if when == "between steps" else net.first.weight.register_hook(die)
            descent.zero_grad()
            wrapper(rows(step, rank)).square().mean().backward()
            descent.step()
    except RuntimeError as error:
        (folder / f"{rank}").write_text(f"{time.time()}\n{error}")
        os._exit(3)


def seconds_to_the_errors(folder: Path, exchanged: bool, when: str) -> list[float]:
    """By surviving process. None is left running."""
    folder.mkdir()
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=process, args=(rank, folder, exchanged, when)) for rank in range(WORLD)]
    for p in processes:
        p.start()
    end = time.monotonic() + 4 * PATIENCE
    for p in processes:
        p.join(max(0, end - time.monotonic()))
    hung = [rank for rank, p in enumerate(processes) if p.exitcode is None]
    for p in processes:
        p.kill()
        p.join()
    assert not hung, f"process {hung} is still running"
    assert [p.exitcode for p in processes] == [-signal.SIGKILL if rank == KILLED else 3 for rank in range(WORLD)]
    killed = float((folder / "killed").read_text())
    return [float((folder / f"{rank}").read_text().splitlines()[0]) - killed for rank in range(WORLD) if rank != KILLED]


@pytest.mark.parametrize("when", ["between steps", "in a backward pass"])
def test_the_others_end_with_an_error_as_soon_as_with_ddp(when: str, tmp_path: Path) -> None:
    ours = seconds_to_the_errors(tmp_path / "exchanged", True, when)
    plain = seconds_to_the_errors(tmp_path / "plain", False, when)
    assert max(*ours, *plain) < PATIENCE / 2, (ours, plain)
    assert max(ours) < max(plain) + 10, (ours, plain)
