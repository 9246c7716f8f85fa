"""Running the tasks of `processes.py` in a group of child processes, of which none is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from manualgrad.bench.shaped_link import INTERFACE, shaped_link


LOOPBACK = "lo" if sys.platform.startswith("linux") else "lo0"


def in_group(task: str, world: int, link: str | None, threads: int, **arguments: Any) -> list[Any]:
    """What a task returns in each process of a gloo group, by rank; over a shaped link, or over loopback.

    Raises:
        ValueError: no such link.
        RuntimeError: the link cannot be made, or a process failed or was killed; with what it said. The others are ended.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        prefixes: Sequence[list[str]] = [[]] * world
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": LOOPBACK}
        if link is not None:
            prefixes = stack.enter_context(shaped_link(world, link))
            environment["GLOO_SOCKET_IFNAME"] = INTERFACE
        processes: list[subprocess.Popen[bytes]] = []
        stack.callback(_end, processes)
        for rank, prefix in enumerate(prefixes):
            request = {"task": task, "rank": rank, "world": world, "folder": folder, "threads": threads}
            command = [
                *(*prefix, sys.executable, "-m", "manualgrad.bench.processes"),
                json.dumps({**request, "arguments": arguments}),
            ]
            out, err = (
                stack.enter_context(_written(folder, rank, stream).open("wb")) for stream in ("stdout", "stderr")
            )
            processes.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=out, stderr=err))
        _wait(processes, folder, task)
        return [json.loads(_written(folder, rank, "stdout").read_text().splitlines()[-1]) for rank in range(world)]


def _wait(processes: Sequence[subprocess.Popen[bytes]], folder: str, task: str) -> None:
    while None in (statuses := [process.poll() for process in processes]) and not any(statuses):
        time.sleep(0.05)
    for rank, status in enumerate(statuses):
        if status:
            said = _written(folder, rank, "stderr").read_text().strip()
            raise RuntimeError(f"Measuring the {task} failed in process {rank} with status {status}:\n{said}")


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
        process.communicate()


def _written(folder: str, rank: int, stream: str) -> Path:
    return Path(folder) / f"{rank}.{stream}"
