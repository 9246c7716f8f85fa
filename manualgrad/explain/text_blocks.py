"""Arrays as blocks of text, side by side: small ones whole, large ones in a line that sums them up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

from torch import Tensor

from manualgrad.activation.idle_units import SATURATED_BELOW, dead_units, saturated_entries
from manualgrad.explain.number_format import displayed
from manualgrad.explain.traced_step import as_rows


GAP = " " * 4
LARGEST = 10  # rows and columns of an array that is written whole


class Block(NamedTuple):
    """An array with its name and shape above it."""

    title: str
    rows: list[str]

    @property
    def width(self) -> int:
        return max(map(len, [self.title, *self.rows]))


def is_small(x: Tensor) -> bool:
    return x.numel() > 0 and not x.is_complex() and max(as_rows(x).shape) <= LARGEST


def block(name: str, x: Tensor) -> Block:
    """All entries, in columns aligned to the right."""
    cells = [[displayed(entry) for entry in row] for row in as_rows(x).tolist()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = ["  ".join(map(str.rjust, row, widths)) for row in cells]
    return Block(titled(name, x), rows)


def summary(name: str, x: Tensor) -> str:
    """Norm, mean and share of zeros in one line."""
    if x.numel() == 0:
        return f"{titled(name, x)}: empty"
    entries = x.abs() if x.is_complex() else x
    entries = entries.double()
    said = [
        f"norm {displayed(entries.norm().item())}",
        f"mean {displayed(entries.mean().item())}",
        f"{share(x == 0)} zero",
    ]
    if not x.isfinite().all():
        said.append(f"{int((~x.isfinite()).sum())} of {x.numel()} not finite")
    return f"{titled(name, x)}: {', '.join(said)}"


def idle(derivative: Tensor, is_rectifying: bool) -> str:
    """Which share of a layer learns nothing in this batch, from sigma'(z); counted as `BackpropMonitor` counts."""
    if derivative.numel() == 0:
        return ""
    if is_rectifying:
        return f"{share(dead_units(derivative))} of the units dead (sigma'(z) is 0 for the whole batch)"
    return f"{share(saturated_entries(derivative))} saturated (|sigma'(z)| below {SATURATED_BELOW})"


def titled(name: str, x: Tensor) -> str:
    return f"{name} {tuple(x.shape)}"


def share(which: Tensor) -> str:
    return f"{100 * which.double().mean().item():.3g} %"


def beside(blocks: Sequence[Block], width: int) -> list[str]:
    """The blocks side by side, as many as `width` has room for; the others below, after an empty line."""
    lines: list[str] = []
    for group in _fitting(blocks, width):
        columns = ([b.title, *b.rows] for b in group)
        lines += ["", *(_joined(pieces, group) for pieces in zip_longest(*columns, fillvalue=""))]
    return lines[1:]


def _fitting(blocks: Sequence[Block], width: int) -> Iterator[list[Block]]:
    group: list[Block] = []
    for b in blocks:
        if group and sum(len(GAP) + other.width for other in group) + b.width > width:
            yield group
            group = []
        group.append(b)
    if group:
        yield group


def _joined(pieces: Sequence[str], group: Sequence[Block]) -> str:
    return GAP.join(piece.ljust(b.width) for piece, b in zip(pieces, group, strict=True)).rstrip()
