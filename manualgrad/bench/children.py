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

from manualgrad.bench import timing
from manualgrad.bench.case import CaseError


SYSTEM, JEMALLOC, CUDA = "glibc malloc", "jemalloc", "CUDA caching allocator"
NO_DECAY = "dirty_decay_ms:-1,muzzy_decay_ms:-1"  # freed pages are kept, as caching allocators do
CHILD = "from manualgrad.bench.children import child; child()"  # -c: the current folder comes first on Python's path


def jemalloc() -> str | None:
    """What to preload for jemalloc, if it is installed (Debian's libjemalloc2)."""
    return ctypes.util.find_library("jemalloc") if sys.platform == "linux" else None


def measured(task: str, allocator: str, threads: int, **arguments: Any) -> Any:
    """What a function of `timing` returns with these arguments in a fresh process with this allocator and so many threads.

    Raises:
        CaseError: of that process.
        RuntimeError: the process failed; with what it said.
    """
    path = os.pathsep.join(map(str, filter(None, sys.path)))  # what can be imported here can be imported there
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    if threads == 1:  # for JAX
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    if allocator == JEMALLOC:
        environment |= {"LD_PRELOAD": str(jemalloc()), "MALLOC_CONF": NO_DECAY}
    request = json.dumps({"task": task, "allocator": allocator, "threads": threads, "arguments": arguments})
    done = subprocess.run([sys.executable, "-c", CHILD, request], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"Measuring {request} failed with status {done.returncode}:\n{done.stderr.strip()}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "refused" in answer:
        raise CaseError(answer["refused"])
    return answer["result"]


def child() -> None:
    """Do what the command line asks for, and print it."""
    request = json.loads(sys.argv[1])
    loaded = Path("/proc/self/maps").read_text() if request["allocator"] == JEMALLOC else JEMALLOC
    if JEMALLOC not in loaded:
        sys.exit("jemalloc was to be preloaded and is not there.")
    torch.set_num_threads(request["threads"])
    try:
        print("", json.dumps({"result": getattr(timing, request["task"])(**request["arguments"])}), sep="\n")
    except CaseError as error:
        print("", json.dumps({"refused": str(error)}), sep="\n")
