"""Matrices as coloured grids: which number stands in which cell, and what is said about them."""

from __future__ import annotations

from dataclasses import dataclass

from manualgrad.explain.number_format import brief, displayed, intensity, typeset
from manualgrad.explain.page.mathml import Math
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.terms import Key, Term
from manualgrad.explain.page.thinning import Axis, how_shown


MOST_COLUMNS_WITH_TEXT = 5  # what a telephone is wide enough for
MOST_ROWS_WITH_TEXT = 10


@dataclass(frozen=True)
class Cell:
    """One number."""

    key: Key
    text: str
    brief: str  # the same with fewer digits
    intensity: float | None  # on the colour scale, -1 to 1; None for NaN


@dataclass(frozen=True)
class Grid:
    """`has_text` grids are small enough to print the numbers; the others show them under the pointer."""

    term: Term
    symbol: Math
    cells: list[list[Cell]]
    shape: str
    scale: str
    note: str | None
    label: str
    when: str = ""  # "before" or "after" the step

    @property
    def has_text(self) -> bool:
        return len(self.cells[0]) <= MOST_COLUMNS_WITH_TEXT and len(self.cells) <= MOST_ROWS_WITH_TEXT

    @property
    def is_tall(self) -> bool:
        return len(self.cells) > 12


def cell(q: Quantities, key: Key) -> Cell:
    """The entry `key`, of the first training step and the first example."""
    quantity, (i, j) = q[key.term], key.at_first
    text = quantity.numbers[0][i][j]
    return Cell(key, typeset(text), brief(text), intensity(float(text), quantity.scale))


def matrix(q: Quantities, term: Term, symbol: Math, *, transposed: bool = False) -> Grid:
    """A weight or its gradient, (m, n), or the transpose."""
    quantity = q[term]
    rows, columns = quantity.rows, quantity.columns
    keys = [[Key(term, i, j) for j in range(columns.count)] for i in range(rows.count)]
    return _grid(q, term, symbol, keys, rows, columns, transposed=transposed)


def column(q: Quantities, term: Term, symbol: Math) -> Grid:
    """The chosen example's column, or a bias."""
    quantity = q[term]
    row = 0 if term.is_bias else "*"
    keys = [[Key(term, row, j)] for j in range(quantity.columns.count)]
    return _grid(q, term, symbol, keys, quantity.columns, Axis(1))


def batch(q: Quantities, term: Term, symbol: Math, *, transposed: bool = False) -> Grid:
    """All shown examples: a row for each, or a column if transposed."""
    quantity = q[term]
    keys = [[Key(term, i, j) for j in range(quantity.columns.count)] for i in range(q.examples)]
    return _grid(q, term, symbol, keys, Axis(q.examples), quantity.columns, transposed=transposed)


def _grid(
    q: Quantities,
    term: Term,
    symbol: Math,
    keys: list[list[Key]],
    rows: Axis,
    columns: Axis,
    *,
    transposed: bool = False,
) -> Grid:
    if transposed:
        keys = [list(column) for column in zip(*keys, strict=True)]
        rows, columns = columns, rows
    shape = f"{rows.size} × {columns.size}"
    scale = typeset(displayed(q[term].scale))
    label = f"{shape}, colours from −{scale} to {scale}"
    cells = [[cell(q, key) for key in line] for line in keys]
    return Grid(term, symbol, cells, shape, scale, how_shown(rows, columns), label)
