"""The network as a picture: a column of circles for each layer, a line for each weight.

What the circles and lines show depends on the section (`Look`). A large layer is drawn with a few of its neurons, a deep network
with the layers around the one in question; the captions say so.
"""

from collections.abc import Callable
from typing import NamedTuple

from manualgrad.explain.page.grids import Cell, cell
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.terms import Key, Term


MOST_LAYERS = 4
LARGE = 6  # with more neurons than this in a column there is no room for numbers


class Shows(NamedTuple):
    """The term that a column of circles shows, and whether it is what this section is about."""

    term: Term | None  # None: not yet known
    active: bool = False
    minor: tuple[tuple[str, Term], ...] = ()  # (label, term) of further numbers under a circle


class Look(NamedTuple):
    neurons: Callable[[Term], Shows]  # of a column: the term of its activations, inputs or outputs
    caption: str
    active: int | None = None  # the layer, counted from 1, whose weights this section is about
    parameters: Callable[[int], str] = lambda layer: "wb"  # the letters of what its lines and squares show


class Neuron(NamedTuple):
    y: float
    name: str
    cell: Cell | None
    minor: list[tuple[str, Term, Cell]]  # further numbers under the circle, each with its label
    bias: Cell | None


class Column(NamedTuple):
    term: Term
    shows: Shows
    terms: str  # all that its circles stand for, for highlighting
    bias_term: Term | None
    neurons: list[Neuron]
    circles: str | None  # for the script, which draws them on a page of many numbers
    x: float
    ys: list[float]
    title: str
    note: str | None


class Weight(NamedTuple):
    x1: float
    y1: float
    x2: float
    y2: float
    cell: Cell
    label: tuple[float, float] | None


class Lines(NamedTuple):
    term: Term
    active: bool
    weights: list[Weight]
    lines: str | None  # for the script


class Drawing(NamedTuple):
    width: float
    height: float
    bottom: float
    radius: float
    has_text: bool
    has_biases: bool
    columns: list[Column]
    lines: list[Lines]
    gaps: list[float]  # the x where parts that are not Dense stand between two layers
    caption: str
    notes: list[str]


def draw(q: Quantities, around: int, look: Look) -> Drawing:
    """The layers around layer `around`, counted from 1."""
    depth = len(q.chained)
    first = max(1, min(around - MOST_LAYERS // 2, depth - MOST_LAYERS + 1))
    last = min(depth, first + MOST_LAYERS - 1)
    names = list(dict.fromkeys(name for i in range(first, last + 1) for name in (q.input_term(i), Term("a", i))))
    if last == depth and not q.outputs_chained:
        names.append(Term("o"))
    axes = [q[q.drawn(name)].columns for name in names]
    most = max(axis.count for axis in axes)
    has_text = q.is_small and most <= LARGE
    radius, between, apart = (24.0, 98.0, 142.0 if len(names) <= 4 else 114.0) if has_text else (8.0, 29.0, 110.0)
    bottom = 30.0 if all(axis.is_whole for axis in axes) else 44.0
    left, height = 44.0 if has_text else 48.0, between * most + bottom
    columns = {}
    for i, (name, axis) in enumerate(zip(names, axes, strict=True)):
        top = (height - bottom - between * axis.count) / 2 + between / 2
        ys = [top + between * j for j in range(axis.count)]
        columns[name] = _column(q, look, name, left + apart * i, ys, radius, has_text)
    lines = [
        _lines(q, look, layer, columns[q.input_term(layer)], columns[Term("a", layer)], radius, has_text)
        for layer in range(first, last + 1)
    ]
    gaps = [columns[name].x - apart / 2 for name in names[1:] if name.letter in "xo"]
    notes = [f"Layers {first} to {last} of {depth} are drawn."] if (first, last) != (1, depth) else []
    has_biases = any(column.bias_term in q for column in columns.values())
    width = 2 * left + apart * (len(names) - 1)
    drawn = (has_text, has_biases, [*columns.values()], lines, gaps)
    return Drawing(width, height, bottom, radius, *drawn, look.caption, notes)


def _column(q: Quantities, look: Look, name: Term, x: float, ys: list[float], radius: float, has_text: bool) -> Column:
    shows, axis = look.neurons(name), q[q.drawn(name)].columns
    layer = name.layer if name.letter == "a" else None
    bias_term = Term(look.parameters(layer)[1], layer) if layer else None
    drawn_bias = q.drawn(bias_term) if bias_term is not None and bias_term in q else None
    neurons, circles = [], None
    if not q.is_small:
        parts = (shows.term and q.drawn(shows.term), drawn_bias, name, x, radius, *ys)
        circles = " ".join(str(part or "-") for part in parts)
    for j, y in enumerate(ys if q.is_small else ()):
        main = None if shows.term is None else cell(q, Key(q.drawn(shows.term), "*", j))
        under = shows.minor if has_text else ()
        minor = [(label, term, cell(q, Key(q.drawn(term), "*", j))) for label, term in under]
        bias = None if drawn_bias is None else cell(q, Key(drawn_bias, 0, j))
        neurons.append(Neuron(y, axis.labels[j], main, minor, bias))
    under_the_circle = () if has_text else shows.minor  # no room for them there: the circle stands for them too
    terms = " ".join(map(str, (shows.term or name, *(term for _, term in under_the_circle))))
    title = {"a": f"layer {layer}" if layer else "input", "x": f"input of {name.layer}", "o": "outputs"}[name.letter]
    note = None if axis.is_whole else f"{axis.count} of {axis.size}"
    return Column(name, shows, terms, bias_term, neurons, circles, x, ys, title, note)


def _lines(q: Quantities, look: Look, layer: int, below: Column, above: Column, radius: float, has_text: bool) -> Lines:
    term, active = Term(look.parameters(layer)[0], layer), layer == look.active
    x1, x2 = below.x + radius, above.x - radius
    if not q.is_small:
        spec = f"{q.drawn(term)} {x1} {x2} {','.join(map(str, below.ys))} {','.join(map(str, above.ys))}"
        return Lines(term, active, [], spec)
    labelled = has_text and active and max(len(below.ys), len(above.ys)) <= 3
    near = 0.36  # labels stand nearer to the upper layer, where the lines of one neuron fan out
    weights = []
    for j, y2 in enumerate(above.ys):
        for k, y1 in enumerate(below.ys):
            label = (above.x + near * (below.x - above.x), y2 + near * (y1 - y2)) if labelled else None
            weights.append(Weight(x1, y1, x2, y2, cell(q, Key(q.drawn(term), j, k)), label))
    return Lines(term, active, weights, None)
