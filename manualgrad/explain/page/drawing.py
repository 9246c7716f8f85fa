"""The network as a picture: a column of circles for each layer, a line for each weight.

What the circles and lines show depends on the step (`Look`). A large layer is drawn with a few of its neurons, a deep network
with the layers around the one in question; the captions say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from manualgrad.explain.page.grids import Cell, cell
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.terms import Key, Term


MOST_LAYERS = 4
LARGE = 6  # with more neurons than this in a column there is no room for numbers


Place = tuple[float, list[float]]  # of a column: its x, and the y of each neuron


@dataclass(frozen=True)
class Shows:
    """The term that a column or a layer of lines shows, and whether it is what this step is about."""

    term: Term | None  # None: not yet known
    active: bool = False
    minor: tuple[tuple[str, Term], ...] = ()  # (label, term) of further numbers under a circle


@dataclass(frozen=True)
class Look:
    neurons: Callable[[Term], Shows]  # of a column: the term of its activations, inputs or outputs
    weights: Callable[[int], Shows]  # of a layer, counted from 1
    biases: Callable[[int], Shows]
    caption: str


@dataclass(frozen=True)
class Minor:
    y: float
    label: str
    term: Term
    cell: Cell


@dataclass(frozen=True)
class Neuron:
    x: float
    y: float
    name: str
    cell: Cell | None
    minor: list[Minor]
    bias: Cell | None


@dataclass(frozen=True)
class Column:
    term: Term
    shows: Shows
    terms: str  # all that its circles stand for, for highlighting
    bias_term: Term | None
    neurons: list[Neuron]
    circles: str | None  # for the script, which draws them on a page of many numbers
    x: float
    title: str
    note: str | None


@dataclass(frozen=True)
class Weight:
    x1: float
    y1: float
    x2: float
    y2: float
    cell: Cell
    label: tuple[float, float] | None


@dataclass(frozen=True)
class Lines:
    shows: Shows
    weights: list[Weight]
    lines: str | None  # for the script


@dataclass(frozen=True)
class Gap:
    """Where parts that are not Dense stand between two layers."""

    x: float


@dataclass(frozen=True)
class Drawing:
    width: float
    height: float
    bottom: float
    radius: float
    has_text: bool
    has_biases: bool
    columns: list[Column]
    lines: list[Lines]
    gaps: list[Gap]
    caption: str
    notes: list[str]


def draw(q: Quantities, look: Look, around: int) -> Drawing:
    """The layers around layer `around`, counted from 1."""
    depth = len(q.chained)
    first = max(1, min(around - MOST_LAYERS // 2, depth - MOST_LAYERS + 1))
    last = min(depth, first + MOST_LAYERS - 1)
    names = _column_names(q, first, last)
    counts = {name: q[q.drawn(name)].columns.count for name in names}
    has_text = q.is_small and max(counts.values()) <= LARGE
    radius, between, apart = (24.0, 98.0, 142.0 if len(names) <= 4 else 114.0) if has_text else (8.0, 29.0, 110.0)
    bottom = 44.0 if any(not q[q.drawn(name)].columns.is_whole for name in names) else 30.0
    height = between * max(counts.values()) + bottom
    left = 44.0 if has_text else 48.0
    columns, at = [], {}
    for i, name in enumerate(names):
        top = (height - bottom - between * counts[name]) / 2 + between / 2
        ys = [top + between * j for j in range(counts[name])]
        columns.append(_column(q, look, name, left + apart * i, ys, radius, has_text))
        at[name] = (left + apart * i, ys)
    lines = [
        _lines(q, look.weights(layer), at[q.input_term(layer)], at[Term("a", layer)], radius, has_text)
        for layer in range(first, last + 1)
    ]
    gaps = [
        Gap((left_column.x + right_column.x) / 2)
        for left_column, right_column in zip(columns, columns[1:], strict=False)
        if right_column.term.letter in "xo"
    ]
    width = 2 * left + apart * (len(names) - 1)
    notes = [f"Layers {first} to {last} of {depth} are drawn."] if (first, last) != (1, depth) else []
    has_biases = any(column.bias_term in q for column in columns)
    return Drawing(width, height, bottom, radius, has_text, has_biases, columns, lines, gaps, look.caption, notes)


def _column_names(q: Quantities, first: int, last: int) -> list[Term]:
    names = []
    for layer in range(first, last + 1):
        below = q.input_term(layer)
        if below not in names:
            names.append(below)
        names.append(Term("a", layer))
    return [*names, Term("o")] if last == len(q.chained) and not q.outputs_chained else names


def _column(q: Quantities, look: Look, name: Term, x: float, ys: list[float], radius: float, has_text: bool) -> Column:
    shows = look.neurons(name)
    axis = q[q.drawn(name)].columns
    layer = name.layer if name.letter == "a" else None
    bias_term = look.biases(layer).term if layer else None
    neurons, circles = [], None
    if not q.is_small:
        parts = (
            shows.term and q.drawn(shows.term),
            bias_term in q and bias_term and q.drawn(bias_term),
            name,
            x,
            radius,
        )
        circles = " ".join(str(part or "-") for part in (*parts, *ys))
    for j, y in enumerate(ys if q.is_small else ()):
        main = None if shows.term is None else cell(q, Key(q.drawn(shows.term), "*", j))
        minor = [
            Minor(y + radius + 12 + 12 * i, label, term, cell(q, Key(q.drawn(term), "*", j)))
            for i, (label, term) in enumerate(shows.minor)
            if has_text
        ]
        bias = cell(q, Key(q.drawn(bias_term), 0, j)) if bias_term in q and bias_term is not None else None
        neurons.append(Neuron(x, y, axis.labels[j], main, minor, bias))
    under_the_circle = () if has_text else shows.minor  # no room for them there: the circle stands for them too
    terms = " ".join(map(str, (shows.term or name, *(term for _, term in under_the_circle))))
    title = {"a": f"layer {layer}" if layer else "input", "x": f"input of {name.layer}", "o": "outputs"}[name.letter]
    note = None if axis.is_whole else f"{axis.count} of {axis.size}"
    return Column(name, shows, terms, bias_term, neurons, circles, x, title, note)


def _lines(q: Quantities, shows: Shows, below: Place, above: Place, radius: float, has_text: bool) -> Lines:
    assert shows.term is not None
    term, (x_below, ys_below), (x_above, ys_above) = q.drawn(shows.term), below, above
    x1, x2 = x_below + radius, x_above - radius
    if not q.is_small:
        spec = f"{term} {x1} {x2} {','.join(map(str, ys_below))} {','.join(map(str, ys_above))}"
        return Lines(shows, [], spec)
    labelled = has_text and shows.active and max(len(ys_below), len(ys_above)) <= 3
    near = 0.36  # labels stand nearer to the upper layer, where the lines of one neuron fan out
    weights = []
    for j, y2 in enumerate(ys_above):
        for k, y1 in enumerate(ys_below):
            label = (x_above + near * (x_below - x_above), y2 + near * (y1 - y2)) if labelled else None
            weights.append(Weight(x1, y1, x2, y2, cell(q, Key(term, j, k)), label))
    return Lines(shows, weights, None)
