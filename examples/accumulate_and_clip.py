"""Gradient accumulation, clipping by the global norm and a schedule on a wide net, with and without dense gradients.

    python examples/accumulate_and_clip.py

Takes about ten seconds on two cores.

The same loop twice, each in a process of its own, since a peak of memory belongs to a process: nn.Linear and torch.optim.SGD,
which hold a gradient and the micro-batch's that is to be added to it, then Dense and GradientDescent. There the gradients of
four micro-batches gather as rows of delta and a, their norm comes from inner products of those rows, and nothing of a
weight's size is made. The data is scikit-learn's handwritten digits. Needs Unix, which tells a process its peak.

Expected output:

    autograd    loss 2.30 -> 1.59, peak memory above the weights: 2.1 times the weights
    manualgrad  loss 2.30 -> 1.59, peak memory above the weights: 0.3 times the weights
"""

import multiprocessing
import resource
import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import manualgrad as mg


WIDTH = 3072
ROWS, MICRO_BATCHES, STEPS = 8, 4, 6
LEARNING_RATE, MAX_NORM = 0.5, 1.0


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def train(name: str, width: int) -> str:
    torch.manual_seed(0)
    model: nn.Module = mg.MLP([64, width, width, 10])
    if name == "autograd":
        model = mg.revert(model)  # nn.Linear and nn.ReLU with the same weights
    parameters = list(model.parameters())
    optimizer = (torch.optim.SGD if name == "autograd" else mg.GradientDescent)(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

    images, digits = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    batches = zip((images.float() / 16).split(ROWS), digits.split(ROWS), strict=True)  # one micro-batch after another
    before, losses = peak_bytes(), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        total = 0.0
        for _ in range(MICRO_BATCHES):
            x, y = next(batches)
            loss = nn.functional.cross_entropy(model(x), y) / MICRO_BATCHES
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        schedule.step()
        losses.append(total)
    above = (peak_bytes() - before) / sum(p.nbytes for p in parameters)
    return f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, peak memory above the weights: {above:.1f} times the weights"


def run(name: str) -> None:
    train(name, width=8)  # brings in what the libraries load on first use
    print(f"{name:10}  {train(name, WIDTH)}")


if __name__ == "__main__":
    for name in ("autograd", "manualgrad"):
        process = multiprocessing.get_context("spawn").Process(target=run, args=(name,))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"{name}: the process failed.")
