"""A callback that keeps the random states in the checkpoint, so that a resumed run draws what an uninterrupted one does."""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn


KEY = "manualgrad.random_states"  # in the checkpoint: a list with the states of each process


class KeepRandomStates(Callback):
    """Saves the random states with every checkpoint and restores them when `fit` resumes from one: torch's on the CPU and
    on the process's own device, NumPy's and Python's.

    With it a model with dropout resumes to the weights of an uninterrupted run, bit for bit: from a checkpoint at the end
    of an epoch with any loader, from one in mid-epoch with a `ResumableLoader`. Not covered: generators of your own; what
    worker processes draw in mid-epoch; what validation draws where Lightning skips it on resuming, after an epoch's last
    batch; and another number of processes, which draw anew. `BackpropModule` and `manualgrad fit` bring this callback along.

    Raises ValueError where the checkpoint's random states are damaged.
    """

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states = [_current(trainer.strategy.root_device)]
        if trainer.world_size > 1:
            states *= trainer.world_size
            torch.distributed.all_gather_object(states, states[0])  # every process saves, and draws for itself
        checkpoint[KEY] = states

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Here, and not when training starts: a shuffling loader draws its seed when Lightning asks it for an iterator, which
        # comes before any later hook.
        states = checkpoint.get(KEY, [])
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if not isinstance(states, list):
            raise ValueError(_damaged(f"a list expected, {states!r} found"))
        if len(states) == trainer.world_size:
            _restore(states[trainer.global_rank], trainer.strategy.root_device)


def _current(device: torch.device) -> dict[str, Any]:
    """Tensors and plain values alone, which `torch.load(weights_only=True)` reads."""
    state: Any = numpy.random.get_state()
    algorithm, keys, *rest = state
    states = {"torch": torch.get_rng_state(), "numpy": (algorithm, keys.tolist(), *rest), "python": random.getstate()}
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state(device)
    return states


def _restore(states: dict[str, Any], device: torch.device) -> None:
    """All of them or, with a ValueError, none."""
    before = _current(device)
    try:
        _set(states, device)
    except Exception as error:  # each generator refuses in its own way what it has not written
        _set(before, device)
        raise ValueError(_damaged(error)) from None


def _damaged(reason: object) -> str:
    return (
        f"Expected the random states that KeepRandomStates saves under {KEY!r}, got a checkpoint in which they are damaged "
        f"({reason}). Resume from another one, or delete that entry from it to draw anew."
    )


def _set(states: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(states["torch"].cpu())
    numpy.random.set_state(states["numpy"])
    random.setstate(states["python"])
    if device.type != "cpu" and "device" in states:
        torch.get_device_module(device).set_rng_state(states["device"].cpu(), device)
