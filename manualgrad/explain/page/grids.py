"""Matrices as coloured grids: which number stands in which cell, and what is said about them."""

from dataclasses import dataclass, replace

from manualgrad.explain.number_format import brief, displayed, intensity, typeset
from manualgrad.explain.page.mathml import Math, row
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.symbols import of_term
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
    when: str = ""  # "before" or "after" the step

    @property
    def label(self) -> str:
        return f"{self.shape}, colours from −{self.scale} to {self.scale}"

    @property
    def has_text(self) -> bool:
        return self.columns <= MOST_COLUMNS_WITH_TEXT and self.rows <= MOST_ROWS_WITH_TEXT

    @property
    def pixels(self) -> float:
        """The side of a cell without text."""
        return max(2.0, min(9.0, round(WIDEST / max(self.columns, self.rows), 1)))


def cell(q: Quantities, key: Key) -> Cell:
    """The entry `key`, of the first training step and the first example."""
    text = q.text(key)
    return Cell(key, typeset(text), brief(text), intensity(float(text), q[key.term].scale))


def matrix(q: Quantities, term: Term, symbol: Math | None = None, *, is_transposed: bool = False) -> Grid:
    """A weight or its gradient, (m, n), or the transpose."""
    return _grid(q, "matrix", term, symbol, q[term].rows, is_transposed)


def column(q: Quantities, term: Term) -> Grid:
    """The chosen example's column, or a bias."""
    return _grid(q, "column", term, None, Axis(1), True)


def batch(q: Quantities, term: Term, symbol: Math | None = None, *, is_transposed: bool = False) -> Grid:
    """All shown examples: a row for each, or a column if transposed."""
    return _grid(q, "batch", term, symbol, Axis(q.examples), is_transposed)


def picture(q: Quantities, shape: tuple[int, int]) -> Grid | None:
    """The pixels that the chosen example feeds into layer 1, as an image of (height, width)."""
    pixels = Term("a", 0)
    height, width = shape
    if pixels not in q or not q[pixels].columns.is_whole or q[pixels].columns.size != height * width:
        return None
    keys = [[Key(pixels, "*", i * width + j) for j in range(width)] for i in range(height)]
    cells = [[cell(q, key) for key in line] for line in keys] if q.is_small else None
    grid = _grid(q, "picture", pixels, row("pixels"), Axis(height), False, Axis(width, most=width))
    return replace(grid, cells=cells)


def _grid(
    q: Quantities,
    kind: str,
    term: Term,
    symbol: Math | None,
    rows: Axis,
    is_transposed: bool,
    columns: Axis | None = None,
) -> Grid:
    columns, cells = columns or q[term].columns, None
    if q.is_small and kind != "picture":
        of_example = kind == "column" and not term.is_bias
        keys = [[Key(term, "*" if of_example else i, j) for j in range(columns.count)] for i in range(rows.count)]
        cells = [[cell(q, key) for key in line] for line in (zip(*keys, strict=True) if is_transposed else keys)]
    if is_transposed:
        rows, columns = columns, rows
    shape, scale = f"{rows.size} × {columns.size}", typeset(displayed(q[term].scale))
    symbol = symbol or of_term(term, in_line=True)
    note = how_shown(rows, columns)
    return Grid(term, kind, is_transposed, symbol, rows.count, columns.count, cells, shape, scale, note)
