"""Learning rates that follow the whole of a training, also of one that goes on from a checkpoint."""

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


FACTORS: dict[str, Callable[[float], float]] = {  # done, from 0 to 1 -> what the learning rate is multiplied by
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
}
SCHEDULES = ("constant", *FACTORS)


class WholeTraining(LRScheduler):
    """lr at step t of T is that of the optimizer times a factor of t / T.

    It depends on nothing else. A training resumed at step t, with another T perhaps, goes on with the learning rate that this
    T gives for t, where PyTorch's own schedulers keep the T that they were saved with.
    """

    def __init__(self, optimizer: Optimizer, schedule: str, steps: int) -> None:
        self._factor, self._steps = FACTORS[schedule], steps
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        factor = self._factor(min(1.0, self.last_epoch / self._steps))
        return [lr * factor for lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch, "base_lrs": self.base_lrs, "_step_count": self._step_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the position and the initial learning rates, also from a state of one of PyTorch's schedulers."""
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        self.base_lrs = list(state_dict["base_lrs"])
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr  # the optimizer's state, loaded before, has that of the training before


def over_whole_training(schedule: str, optimizer: Optimizer, steps: float) -> WholeTraining:
    """Raises ValueError if the number of steps is infinite."""
    if math.isinf(steps):
        raise ValueError(
            f"lr_schedule={schedule!r} expected a training of known length, got max_epochs=-1 and no max_steps. "
            "Pass Trainer(max_epochs=...), or lr_schedule='constant'."
        )
    return WholeTraining(optimizer, schedule, max(1, int(steps)))


def take_schedule(checkpoint: dict[str, Any], schedule: str) -> None:
    """Change a checkpoint to be loaded, so that the learning rate follows `schedule`, whichever it was trained with."""
    groups = [group for state in checkpoint.get("optimizer_states", []) for group in state["param_groups"]]
    initial = [group.get("initial_lr", group["lr"]) for group in groups]
    if schedule == "constant":
        for group, lr in zip(groups, initial, strict=True):
            group["lr"] = lr
    elif not checkpoint.get("lr_schedulers"):
        step = checkpoint.get("global_step", 0)
        checkpoint["lr_schedulers"] = [{"last_epoch": step, "_step_count": step + 1, "base_lrs": initial}]
