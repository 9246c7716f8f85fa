"""Matrices as coloured grids: which number stands in which cell, and what is said about them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from manualgrad.explain.number_format import brief, displayed, intensity, typeset
from manualgrad.explain.page.mathml import Math, row
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.terms import Key, Term
from manualgrad.explain.page.thinning import Axis, how_shown


MOST_COLUMNS_WITH_TEXT = 10
MOST_ROWS_WITH_TEXT = 16
WIDEST = 288  # pixels of a grid without text


@dataclass(frozen=True)
class Cell:
    """One number."""

    key: Key
    text: str
    brief: str  # the same with fewer digits
    intensity: float | None  # on the colour scale, -1 to 1; None for NaN


@dataclass(frozen=True)
class Grid:
    """`has_text` grids are small enough to print the numbers; the others show them on demand.

    On a page of many numbers the script makes the cells: of a "matrix", of the chosen example's "column" or of the first
    examples, a "batch".
    """

    term: Term
    kind: str
    is_transposed: bool
    symbol: Math
    rows: int
    columns: int
    cells: list[list[Cell]] | None
    shape: str
    scale: str
    note: str | None
    label: str
    when: str = ""  # "before" or "after" the step

    @property
    def has_text(self) -> bool:
        return self.columns <= MOST_COLUMNS_WITH_TEXT and self.rows <= MOST_ROWS_WITH_TEXT

    @property
    def pixels(self) -> float:
        """The side of a cell without text."""
        return max(2.0, min(9.0, round(WIDEST / max(self.columns, self.rows), 1)))


def cell(q: Quantities, key: Key) -> Cell:
    """The entry `key`, of the first training step and the first example."""
    quantity, (i, j) = q[key.term], key.at_first
    text = quantity.numbers[0][i][j]
    return Cell(key, typeset(text), brief(text), intensity(float(text), quantity.scale))


def matrix(q: Quantities, term: Term, symbol: Math, *, transposed: bool = False) -> Grid:
    """A weight or its gradient, (m, n), or the transpose."""
    return _grid(q, "matrix", term, symbol, q[term].rows, q[term].columns, transposed)


def column(q: Quantities, term: Term, symbol: Math) -> Grid:
    """The chosen example's column, or a bias."""
    return _grid(q, "column", term, symbol, Axis(1), q[term].columns, True)


def batch(q: Quantities, term: Term, symbol: Math, *, transposed: bool = False) -> Grid:
    """All shown examples: a row for each, or a column if transposed."""
    return _grid(q, "batch", term, symbol, Axis(q.examples), q[term].columns, transposed)


def picture(q: Quantities, shape: tuple[int, int]) -> Grid | None:
    """The pixels that the chosen example feeds into layer 1, as an image of (height, width)."""
    pixels = Term("a", 0)
    height, width = shape
    if pixels not in q or not q[pixels].columns.is_whole or q[pixels].columns.size != height * width:
        return None
    of_all = _grid(q, "picture", pixels, row("pixels"), Axis(height), Axis(width, most=width), False)
    keys = [[Key(pixels, "*", i * width + j) for j in range(width)] for i in range(height)]
    return replace(of_all, cells=[[cell(q, key) for key in line] for line in keys] if q.is_small else None)


def _grid(q: Quantities, kind: str, term: Term, symbol: Math, rows: Axis, columns: Axis, is_transposed: bool) -> Grid:
    first = "*" if kind == "column" and not term.is_bias else None
    cells = None
    if q.is_small and kind != "picture":
        keys = [[Key(term, i if first is None else first, j) for j in range(columns.count)] for i in range(rows.count)]
        lines = zip(*keys, strict=True) if is_transposed else keys
        cells = [[cell(q, key) for key in line] for line in lines]
    if is_transposed:
        rows, columns = columns, rows
    shape = f"{rows.size} × {columns.size}"
    scale = typeset(displayed(q[term].scale))
    label = f"{shape}, colours from −{scale} to {scale}"
    note = how_shown(rows, columns)
    return Grid(term, kind, is_transposed, symbol, rows.count, columns.count, cells, shape, scale, note, label)
