"""What `BackpropMonitor` costs: the same training in Lightning with it and without, in turn, in one process.

    python -m manualgrad.bench.monitor [words in the names of the nets and loggers to measure]

Prints the median time of 50 consecutive steps, one of which is sampled, per step, and the difference in percent.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset

from manualgrad.lightning import BackpropModule, BackpropMonitor


PERIOD = 50
BATCH_SIZE = 32
PERIODS, TURNS = 3, 8
NETS: dict[str, dict[str, Any]] = {
    "digits 64-128-10": {"sizes": (64, 128, 10)},
    "512-1024-1024-512, no momentum": {"sizes": (512, 1024, 1024, 512), "momentum": 0.0},
    "512-1024-1024-512, momentum": {"sizes": (512, 1024, 1024, 512)},
}
LOGGERS: dict[str, Any] = {"no logger": lambda folder: False, "CSV": CSVLogger, "TensorBoard": TensorBoardLogger}


class Clock(Callback):
    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.starts.append(time.perf_counter())


def seconds_per_step(options: dict[str, Any], logger: Any, callbacks: Sequence[Callback]) -> list[float]:
    """Of each period but the first, which warms up."""
    steps = PERIOD * (PERIODS + 1) + 1
    torch.manual_seed(0)
    sizes = options["sizes"]
    data = TensorDataset(torch.rand(BATCH_SIZE * steps, sizes[0]), torch.randint(sizes[-1], (BATCH_SIZE * steps,)))
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=logger,
        callbacks=[clock, *callbacks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(BackpropModule(**options), DataLoader(data, batch_size=BATCH_SIZE))
    marks = clock.starts[PERIOD::PERIOD]
    return [(end - start) / PERIOD for start, end in zip(marks, marks[1:], strict=False)]


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, batch {BATCH_SIZE}")
    for net, options in NETS.items():
        for name, logger in LOGGERS.items():
            if any(word not in f"{net}, {name}" for word in sys.argv[1:]):
                continue
            plain: list[float] = []
            monitored: list[float] = []
            for _ in range(TURNS):
                for times, callbacks in ((plain, []), (monitored, [BackpropMonitor(PERIOD)])):
                    with tempfile.TemporaryDirectory() as folder:
                        times += seconds_per_step(options, logger(folder), callbacks)
            before, after = median(plain), median(monitored)
            print(f"{net}, {name}: {before * 1e6:.0f} us, monitored {after * 1e6:.0f} us: {after / before - 1:+.1%}")


if __name__ == "__main__":
    main()
