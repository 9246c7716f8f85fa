"""The text's symbols and numbers as MathML.

Every symbol that stands for numbers carries its term (`data-t`), and every number the key of its entry (`data-k`): the page
finds by them what belongs together.
"""

from manualgrad.explain.number_format import typeset
from manualgrad.explain.page.mathml import Math, identifier, literal, operator, row, sum_over
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.terms import Key, Term


LETTERS = {"W": "w", "B": "b", "d": "δ", "o": "a"}  # others stand for themselves
DIFFERENTIATED = {"g": "a", "og": "a", "u": "w", "v": "b", "U": "w", "V": "b"}  # x in dC/dx


def of_term(term: Term, index: Math | None = None, *, in_line: bool = False) -> Math:
    """The symbol of a quantity: w2 -> w^2, u2 -> ∂C/∂w^2, s2 -> σ′(z^2). `in_line`: a derivative with a slash."""
    letter = term.letter
    layer: int | str | None = "out" if letter in ("o", "og") else term.layer
    if letter == "s":
        return row(symbol("σ′", None, term), "(", symbol("z", layer, Term("z", term.layer), index), ")")
    if letter not in DIFFERENTIATED:
        return symbol(LETTERS.get(letter, letter), layer, term, index)
    x = symbol(DIFFERENTIATED[letter], layer, term, index)
    above, below = row(identifier("∂"), identifier("C")), row(identifier("∂"), Math(x.tag, x.children))
    tag, parts = ("mrow", (above, operator("/"), below)) if in_line else ("mfrac", (above, below))
    derivative = Math(tag, parts, x.attributes)
    return row(sum_over("calls"), derivative) if letter in "UV" else derivative


def symbol(letter: str, layer: int | str | None, term: Term, index: Math | None = None) -> Math:
    """A letter with its layer above and, if it is one entry, its index below: w^2, w^2_{13}."""
    above = () if layer is None else (literal(layer),)
    below = () if index is None else (index,)
    tag = {(0, 0): "mrow", (1, 0): "msup", (0, 1): "msub", (1, 1): "msubsup"}[len(above), len(below)]
    return Math(tag, (identifier(letter), *below, *above), {"data-t": term, "class": "term"})


def number(q: Quantities, term: Term, row: int | str, column: int | str, *, factor: bool = False) -> Math:
    """One entry's number, as the drawing has it. A negative factor stands in brackets, so that a product can be read:
    0.5 · (−0.2)."""
    key = Key(q.drawn(term), row, column)
    text = typeset(q.text(key))
    attributes = {"data-k": key, "class": "number factor" if factor else "number"}
    return Math("mn", (f"({text})" if factor and text[0] == "−" else text,), attributes)


def position(q: Quantities, term: Term, place: str) -> Math:
    """An index that follows the neuron chosen on the page: the label of the column `place`, "@" or "%", of a quantity."""
    return Math("mn", (q[q.drawn(term)].columns.labels[0],), {"data-at": f"{q.drawn(term)}:{place}"})
