"""Arrays as blocks of text, side by side: small ones whole, large ones in a line that sums them up."""

import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

from torch import Tensor

from manualgrad.activation.idle_units import SATURATED_BELOW, dead_units, saturated_entries
from manualgrad.explain.number_format import displayed
from manualgrad.explain.printable import printable
from manualgrad.explain.traced_step import as_rows


GAP = " " * 4
LARGEST = 10  # rows and columns of an array that is written whole
SHADES = "·░▒▓█"


class Block(NamedTuple):
    """An array with its name and shape above it."""

    title: str
    rows: list[str]

    @property
    def width(self) -> int:
        return max(map(len, [self.title, *self.rows]))


def is_small(x: Tensor) -> bool:
    return x.numel() > 0 and not x.is_complex() and max(as_rows(x).shape) <= LARGEST


def blocks(name: str, x: Tensor, width: int) -> list[Block]:
    """All entries, in columns aligned to the right: one block, or several of as many columns as `width` has room for."""
    cells = [[displayed(entry) for entry in row] for row in as_rows(x).tolist()]
    columns = [[cell.rjust(max(map(len, column))) for cell in column] for column in zip(*cells, strict=True)]
    return [
        Block(
            f"{name}[:, {part.start}:{part.stop}]" if part.start else titled(name, x),
            ["  ".join(row) for row in zip(*columns[part], strict=True)],
        )
        for part in _groups([len(column[0]) for column in columns], 2, width)
    ]


def pictures(images: Tensor, titles: Sequence[str]) -> list[Block]:
    """Images (r, height, width) with pixels from 0 to 1, two characters each: the fuller, the larger the number."""
    levels = (images.double().clamp(0, 1).nan_to_num() * (len(SHADES) - 1)).round().long().tolist()
    return [
        Block(title, ["".join(2 * SHADES[level] for level in row) for row in image])
        for title, image in zip(titles, levels, strict=True)
    ]


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


def classes(name: str, one_hot: Tensor) -> str:
    """How many examples each class has, in place of their labels' norm and mean."""
    counts = one_hot.sum(0).long().tolist()
    return f"{titled(name, one_hot)}: one-hot; examples of each class: {' '.join(map(str, counts))}"


def share(which: Tensor) -> str:
    return f"{100 * which.double().mean().item():.3g} %"


def beside(blocks: Sequence[Block], width: int) -> list[str]:
    """The blocks side by side, as many as `width` has room for; the others below, after an empty line."""
    lines: list[str] = []
    for group in (blocks[part] for part in _groups([b.width for b in blocks], len(GAP), width)):
        columns = ([line.ljust(b.width) for line in (b.title, *b.rows)] for b in group)
        lines.append("")
        for pieces in zip_longest(*columns):
            lines.append(GAP.join(piece or " " * b.width for piece, b in zip(pieces, group, strict=True)).rstrip())
    return lines[1:]


def _groups(widths: Sequence[int], gap: int, width: int) -> Iterator[slice]:
    """Which of the columns of these widths stand side by side: as many as `width` has room for, at least one."""
    first = 0
    for i in range(1, len(widths)):
        if sum(widths[first : i + 1]) + gap * (i - first) > width:
            yield slice(first, i)
            first = i
    if widths:
        yield slice(first, len(widths))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, left: int) -> list[str]:
    """A table of at most `width` characters, its first `left` columns aligned to the left.

    Where it would be wider, the words of the header go below one another; if that is not enough, names in the first column
    lose their middle."""
    for longest, gap in ((width, 2), (12, 2), (9, 1)):
        headers = [textwrap.wrap(cell, longest, break_long_words=False) for cell in header]
        widths = [
            max(map(len, [*words, *cells])) for words, cells in zip(headers, zip(*rows, strict=True), strict=True)
        ]
        if sum(widths) + gap * (len(widths) - 1) <= width:
            break
    else:
        widths[0] = max(len(header[0]), width - sum(widths[1:]) - gap * (len(widths) - 1))
        rows = [(printable(row[0], widths[0]), *row[1:]) for row in rows]
    above = list(zip_longest(*headers, fillvalue=""))
    justify = [str.ljust] * left + [str.rjust] * (len(header) - left)
    lines = [
        (" " * gap).join(to(cell, size) for to, cell, size in zip(justify, line, widths, strict=True)).rstrip()
        for line in [*above, *rows]
    ]
    return [*lines[: len(above)], "-" * max(map(len, lines)), *lines[len(above) :]]
