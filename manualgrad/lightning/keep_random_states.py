"""A callback that keeps the random states in the checkpoint, so that a resumed run draws what an uninterrupted one does."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from manualgrad.dry_run import random_states, set_random_states


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
        states = [random_states(_devices(trainer))]
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
            _restore(states[trainer.global_rank], _devices(trainer))


def _devices(trainer: Trainer) -> list[torch.device]:
    """The process's own device, unless it is the CPU."""
    return [device] if (device := trainer.strategy.root_device).type != "cpu" else []


def _restore(states: dict[str, Any], devices: Sequence[torch.device]) -> None:
    """All of them or, with a ValueError, none."""
    before = random_states(devices)
    try:
        device = [states["device"]] if "device" in states else []  # how checkpoints of version 0.1.0 name it
        set_random_states({"devices": device, **states}, devices)
    except Exception as error:  # each generator refuses in its own way what it has not written
        set_random_states(before, devices)
        raise ValueError(_damaged(error)) from None


def _damaged(reason: object) -> str:
    return (
        f"Expected the random states that KeepRandomStates saves under {KEY!r}, got a checkpoint in which they are damaged "
        f"({reason}). Resume from another one, or delete that entry from it to draw anew."
    )
