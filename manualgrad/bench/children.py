"""Measuring in child processes: an allocator is chosen when a process starts, and a peak of memory needs one of its own."""

from __future__ import annotations

import ctypes.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from manualgrad.bench.measure import peak_bytes, step_times


SYSTEM, JEMALLOC, CUDA = "glibc malloc", "jemalloc", "CUDA caching allocator"
NO_DECAY = "dirty_decay_ms:-1,muzzy_decay_ms:-1"  # freed pages are kept, as caching allocators do
TASKS: dict[str, Any] = {"time": step_times, "memory": peak_bytes}


def jemalloc() -> str | None:
    """What to preload for jemalloc, if it is installed (Debian's libjemalloc2)."""
    return ctypes.util.find_library("jemalloc") if sys.platform == "linux" else None


def measured(task: str, allocator: str, threads: int, **arguments: Any) -> Any:
    """What a function of TASKS returns with these arguments in a fresh process with this allocator and so many threads.

    Raises:
        RuntimeError: the process failed; with what it said.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if threads == 1:  # for JAX
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    if allocator == JEMALLOC:
        environment |= {"LD_PRELOAD": str(jemalloc()), "MALLOC_CONF": NO_DECAY}
    request = json.dumps({"task": task, "allocator": allocator, "threads": threads, "arguments": arguments})
    command = [sys.executable, "-m", "manualgrad.bench.children", request]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"Measuring {request} failed with status {done.returncode}:\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def _child(line: str) -> None:
    request = json.loads(line)
    loaded = Path("/proc/self/maps").read_text() if request["allocator"] == JEMALLOC else JEMALLOC
    if JEMALLOC not in loaded:
        sys.exit("jemalloc was to be preloaded and is not there.")
    torch.set_num_threads(request["threads"])
    print(json.dumps(TASKS[request["task"]](**request["arguments"])))


if __name__ == "__main__":
    _child(sys.argv[1])
