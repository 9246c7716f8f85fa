"""Run a function in several gloo processes and collect what each returns; nothing is left running, whatever happens."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing


def in_processes(world: int, function: Callable[..., Any], *arguments: Any, seconds: float = 600) -> list[Any]:
    """What `function(rank, world, *arguments)` returns in each process of a gloo group, by rank.

    Raises TimeoutError after those seconds, and what a process raised.
    """
    return spawned(world, _in_group, function, *arguments, seconds=seconds)


def spawned(world: int, function: Callable[..., Any], *arguments: Any, seconds: float = 600) -> list[Any]:
    """The same without a process group."""
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.spawn(_run, (world, folder, function, arguments), nprocs=world, join=False)
        deadline = time.monotonic() + seconds
        try:
            while not context.join(timeout=1):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the processes are still running after {seconds} s: {arguments[:1]} hangs")
        finally:
            for process in context.processes:
                process.kill()
                process.join()
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(world)]


def _run(rank: int, world: int, folder: str, function: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    if function is _in_group:
        arguments = (folder, *arguments)
    torch.save(function(rank, world, *arguments), f"{folder}/{rank}")


def _in_group(rank: int, world: int, folder: str, function: Callable[..., Any], *arguments: Any) -> Any:
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", rendezvous, rank=rank, world_size=world, timeout=timedelta(seconds=120))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="torch.distributed")
        result = function(rank, world, *arguments)
    dist.barrier()
    dist.destroy_process_group()
    return result
