"""A DataLoader that continues in the middle of an epoch."""

from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader


class ResumableLoader(DataLoader):
    """A `DataLoader` that saves its position in the epoch in Lightning checkpoints, so that a resumed run sees the batches
    that an uninterrupted run sees.

    Needs a sampler whose order depends only on the epoch set by `set_epoch`, such as `DistributedSampler` (which also works
    in a single process). With a sampler that draws from the global random state the position is kept, but not the order.
    """

    _epoch = 0  # of the sampler when the batches below were delivered
    _delivered = 0  # batches of that epoch
    _resumed: tuple[int, int] | None = None  # epoch and batches delivered before the checkpoint

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "delivered": self._delivered}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._resumed = self._epoch, self._delivered = state["epoch"], state["delivered"]

    def __iter__(self) -> Any:
        return self._batches()

    def _batches(self) -> Iterator[Any]:
        # A generator: its first line runs when the first batch is asked for, after Lightning has called `set_epoch`.
        self._epoch = getattr(self.sampler, "epoch", 0)
        resumed_epoch, delivered = self._resumed or (None, 0)
        self._resumed = None
        self._delivered = delivered if resumed_epoch == self._epoch else 0
        # The skipped batches drew their random numbers before the checkpoint; the next batch must find the states saved in it.
        with isolate_rng() if self._delivered else nullcontext():
            batches = super().__iter__()
            deque(islice(batches, self._delivered), maxlen=0)
        for batch in batches:
            self._delivered += 1
            yield batch
