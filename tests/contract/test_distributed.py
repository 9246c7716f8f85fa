"""Two processes, each with half of the batch, come to the weights of one process with all of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from tests.contract import distributed_cases


pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    directory: Path = tmp_path_factory.mktemp("distributed")
    results = str(directory / "results")
    arguments = (f"file://{directory / 'rendezvous'}", results)
    multiprocessing.spawn(distributed_cases.run_all, arguments, nprocs=distributed_cases.WORLD)
    return [torch.load(f"{results}.{rank}") for rank in range(distributed_cases.WORLD)]


@pytest.mark.parametrize("case", distributed_cases.CASES)
def test_same_weights_as_one_process(case: str, outcomes: list[dict[str, Any]]) -> None:
    if case.startswith("FSDP2") and torch.__version__ < "2.7":
        pytest.skip("FSDP2 does not run on the CPU in torch 2.6: its streams lack record_event")
    for outcome in outcomes:
        assert not isinstance(outcome[case], str), outcome[case]
        assert outcome[case] < 1e-12
