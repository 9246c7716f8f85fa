"""What the targets of a batch mean: classes, as one-hot rows, or real numbers; and how well the latter are predicted."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from manualgrad.autograd.autocast import is_autocasting
from manualgrad.losses.cross_entropy import check_class_indices


CALLER = "BackpropModule"


def one_hot_rows(outputs: Tensor, classes: Tensor) -> Tensor:
    """classes (...) of int64 as rows of outputs' shape (..., m); with one output, 0 and 1 as they are.

    Raises ValueError or TypeError unless there is a class index for each row (their range is seen on the CPU only).
    """
    advice = "Give one class for each input."
    check_class_indices(classes, outputs, outputs.shape[:-1], max(2, outputs.size(-1)), CALLER, advice)
    if outputs.size(-1) == 1:
        return classes.unsqueeze(-1).to(outputs.dtype)
    return nn.functional.one_hot(classes, outputs.size(-1)).to(outputs.dtype)


def real_rows(outputs: Tensor, targets: Tensor) -> Tensor:
    """Floating point targets (..., m), or (...) for one output, in outputs' shape (..., m) and dtype (float32 under autocast).

    Raises ValueError for another shape: broadcasting would compare every output with every target.
    """
    alone = outputs.size(-1) == 1
    if alone and targets.shape == outputs.shape[:-1]:
        targets = targets.unsqueeze(-1)
    if targets.shape != outputs.shape:
        short = f" or {tuple(outputs.shape[:-1])}" if alone else ""
        raise ValueError(
            f"{CALLER} expected floating point targets of the outputs' shape {tuple(outputs.shape)}{short}, got "
            f"{tuple(targets.shape)}. Reshape them, nothing is broadcast; or, if they are class indices, convert them with "
            "targets.long()."
        )
    return targets.to(_at_least_float32(outputs.dtype) if is_autocasting(outputs) else outputs.dtype)


class RSquared(Metric):
    """R^2 = 1 - sum (y - a)^2 / sum (y - mean of y)^2, averaged over the outputs; NaN where all y are equal, as one is.

    The sums of an epoch's batches, and of several processes, are joined without cancelling (Chan, Golub and LeVeque 1983).
    """

    full_state_update = False
    rows: Tensor  # (1,), and (m,) each:
    mean: Tensor
    spread: Tensor  # sum (y - mean)^2
    error: Tensor  # sum (y - a)^2

    def __init__(self, outputs: int) -> None:
        super().__init__()
        for name, size in (("rows", 1), ("mean", outputs), ("spread", outputs), ("error", outputs)):
            self.add_state(name, torch.zeros(size), dist_reduce_fx=None)  # a row for each process

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """outputs a and targets y (..., m)."""
        dtype = _at_least_float32(outputs.dtype)
        a, y = (x.detach().to(dtype).reshape(-1, x.size(-1)) for x in (outputs, targets))
        if len(y):
            mean = y.mean(0)
            here = (self.rows.new_tensor([len(y)]), mean, (y - mean).square().sum(0), (y - a).square().sum(0))
            self.rows, self.mean, self.spread, self.error = _joined(
                (self.rows, self.mean, self.spread, self.error), here
            )

    def compute(self) -> Tensor:
        parts = [x.reshape(-1, x.size(-1)) for x in (self.rows, self.mean, self.spread, self.error)]
        whole, *others = zip(*parts, strict=True)
        for other in others:
            whole = _joined(whole, other)
        _, _, spread, error = whole
        return torch.where(spread > 0, 1 - error / spread, torch.nan).mean()


def _joined(x: tuple[Tensor, ...], y: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, mean, spread and error of two parts together."""
    rows, apart = x[0] + y[0], y[1] - x[1]
    share = y[0] / rows.clamp(min=1)
    return rows, x[1] + apart * share, x[2] + y[2] + apart.square() * x[0] * share, x[3] + y[3]


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
