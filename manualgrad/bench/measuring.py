"""`measure`: the ways to train one case, in processes of their own."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from manualgrad.bench.case import Case, CaseError
from manualgrad.bench.children import CUDA, JEMALLOC, SYSTEM, jemalloc, measured
from manualgrad.bench.layers import Layer
from manualgrad.bench.optimizers import FORMS, GRADIENT_DESCENT, has_form
from manualgrad.bench.rows import Row, Rows
from manualgrad.bench.ways import OURS, WAYS


FLOOR = "floor of memory and arithmetic"


def measure(
    model: str,
    batch: int = 8,
    *,
    optimizer: str | None = None,
    loss: str | None = None,
    clip: bool = False,
    ways: Sequence[str] | None = None,
    memory: bool = True,
    device: str | None = None,
    allocator: str = SYSTEM,
    threads: int | None = None,
    seconds: float = 5.0,
) -> Rows:
    """Time and peak memory of a training step of a model: plain, converted, converted and factored, and by `TrainStep`.

        rows = measure("package.module:make", batch=8, optimizer="adamw")
        print(rows)

    A step is zero_grad, forward, loss, backward, clipping if asked for, and the update. All ways start from the same weights
    and must have reached the same after five steps. Times are medians of turns in one process; each peak of memory is
    measured in a process of its own.

    Args:
        model: the name of a function, which is imported in those processes. `make(batch)` returns (model, inputs, targets):
            a module; a tensor, or a tuple or dict of them, to call it with; and what the loss compares the outputs with. With
            None for targets, the model's output is the loss, or has it as `.loss`, as in transformers.
            Or a net of dense layers such as "784-30-10 sigmoid", with an activation of the outputs "784-30-10 sigmoid sigmoid".
        batch: rows of the batch, or whatever `make` takes it for.
        optimizer: "gradient_descent" (manualgrad's, against torch.optim.SGD), "sgd", "momentum" (0.9), or a class of
            torch.optim in small letters, with PyTorch's default options; SGD's learning rate is 0.1. Default: "adamw" for a
            model of one's own, "gradient_descent" for a net.
        loss: "mse", "cross_entropy", "binary_cross_entropy" (of logits), or the name of a function or class. Default:
            cross-entropy for targets that are whole numbers, else mean squares.
        clip: clip the gradients by their common norm.
        ways: names from `manualgrad.bench.ways.WAYS`; they are compared with those of plain PyTorch among them, or with
            every form that plain PyTorch has.
        memory: measure peaks, in bytes. They need Linux or CUDA; elsewhere they are None.
        device: "cpu" or "cuda"; default: CUDA where available.
        allocator: on the CPU, "glibc malloc" (the system's) or "jemalloc", which is preloaded.
        threads: on the CPU; default: PyTorch's choice.
        seconds: to spend on the times, at least.

    Raises:
        CaseError (a ValueError): an argument is invalid, or the model cannot be built or trained; before anything is timed.
        RuntimeError: a way to train has reached other weights, or a process failed.
    """
    net = Case(model, batch).net
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = optimizer or ("adamw" if net is None else GRADIENT_DESCENT)
    case = Case(model, batch, name, loss, clip, device)
    case.check_names()
    if unknown := [way for way in ways or () if way not in WAYS]:
        raise CaseError(f"Expected ways to train, some of {', '.join(WAYS)}, got {unknown[0]!r}.")
    usual = [form for form in FORMS if has_form(name, FORMS[form])]
    plain = [way for way in ways or () if way in FORMS] or usual
    names = list(dict.fromkeys([*plain, *(ways or OURS)]))  # the first is what the others' weights are compared with
    if allocator not in (SYSTEM, JEMALLOC) or (allocator == JEMALLOC and jemalloc() is None):
        raise CaseError(
            f"Expected an allocator that is there, {SYSTEM!r} or {JEMALLOC!r}, got {allocator!r}. "
            "To install jemalloc on Debian: apt-get install libjemalloc2."
        )
    threads = threads or torch.get_num_threads()
    result = measured("step_times", allocator, threads, case=case, names=names, seconds=seconds)
    best = min(result["times"][way]["seconds"] for way in plain if way in result["times"])
    about = (model, name, clip, _machine(device, allocator, threads), batch)
    rows = []
    for way in names:
        times = result["times"].get(way)
        if times is None:
            rows.append(Row(*about, way, note=result["notes"][way]))
            continue
        peak = measured("peak_bytes", allocator, threads, case=case, name=way) if memory else None
        layers = tuple(Layer(*layer) for layer in result["layers"]) if way == "factored" else ()
        speed, apart = best / times["seconds"], result["weights_apart"][way]
        rows.append(Row(*about, way, **times, speed=speed, peak_bytes=peak, weights_apart=apart, layers=layers))
    if "floor" in result:
        rows.append(Row(*about, FLOOR, seconds=result["floor"], speed=best / result["floor"]))
    return Rows(rows)


def _machine(device: str, allocator: str, threads: int) -> str:
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, {CUDA}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model or 'CPU'}, {threads} of {os.cpu_count()} cores, {allocator}, torch {torch.__version__}"
