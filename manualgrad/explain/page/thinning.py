"""Large arrays made small enough to look at, and the sentence that says so.

A grid shows block means: neighbouring rows and columns are averaged. A drawing shows some of the neurons, each with its own
numbers. Neither pretends to be the whole.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


LARGEST_GRID = 32  # rows and columns of a grid
LARGEST_COLUMN = 10  # neurons of a layer in the drawing; of a larger one
DRAWN = 8  # this many are drawn


@dataclass(frozen=True)
class Axis:
    """How one axis of `size` entries is shown: as at most `most` means of neighbours, or as the entries `picked`."""

    size: int
    picked: tuple[int, ...] | None = None
    most: int = LARGEST_GRID

    @property
    def count(self) -> int:
        return min(self.size, self.most) if self.picked is None else len(self.picked)

    @property
    def is_whole(self) -> bool:
        return self.count == self.size

    @property
    def labels(self) -> list[str]:
        """What each shown entry is called, counted from 1 as in the text: "7", or "17–32" for a mean."""
        if self.picked is not None:
            return [str(i + 1) for i in self.picked]
        ends = [block[-1].item() + 1 for block in torch.arange(self.size).tensor_split(self.count)] if self.size else []
        starts = [1, *(end + 1 for end in ends[:-1])]
        return [str(end) if start == end else f"{start}–{end}" for start, end in zip(starts, ends, strict=True)]

    def shown(self, x: Tensor, dim: int) -> Tensor:
        """`x` with this axis in place of its axis `dim`."""
        if self.is_whole:
            return x
        if self.picked is not None:
            return x.index_select(dim, torch.tensor(self.picked, device=x.device))
        return torch.stack([block.mean(dim) for block in x.tensor_split(self.count, dim)], dim)


def whole_axis(size: int) -> Axis:
    return Axis(size, most=size)


def drawn_axis(size: int) -> Axis:
    """All neurons of a small layer; of a large one eight, evenly spaced."""
    if size <= LARGEST_COLUMN:
        return Axis(size)
    return Axis(size, tuple((2 * i + 1) * size // (2 * DRAWN) for i in range(DRAWN)))


def how_shown(rows: Axis, columns: Axis) -> str | None:
    """ "shown as 32 × 32 block means of 512 × 784", or None where nothing is left out."""
    if rows.is_whole and columns.is_whole:
        return None
    if 1 in (rows.size, columns.size):
        return f"shown as {rows.count * columns.count} block means of {rows.size * columns.size}"
    return f"shown as {rows.count} × {columns.count} block means of {rows.size} × {columns.size}"
