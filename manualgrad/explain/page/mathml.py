"""Formulas as MathML: a tree of elements, which the template writes down with everything escaped.

Every symbol that stands for numbers carries its term (`data-t`), and every number the key of its entry (`data-k`): the page
finds by them what belongs together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from manualgrad.explain.number_format import typeset
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.terms import Key, Term


_BETWEEN = ("=", "+", "−", "·", "⊙", "≔", "←")


@dataclass(frozen=True)
class Math:
    """One element: <tag attributes>children</tag>."""

    tag: str
    children: tuple[Math | str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


def row(*parts: Math | str) -> Math:
    """Parts side by side. A string is an operator."""
    return Math("mrow", tuple(operator(part) if isinstance(part, str) else part for part in parts))


def operator(sign: str) -> Math:
    """A sign with room on both sides, also where it begins or ends an element; a bracket without."""
    return Math("mo", (sign,), {"form": "infix"} if sign in _BETWEEN else {})


def identifier(letter: str) -> Math:
    return Math("mi", (letter,))


def literal(number: int | str) -> Math:
    return Math("mn", (str(number),))


def symbol(letter: str, layer: int | str | None, term: Term, *, index: Math | None = None) -> Math:
    """A letter with its layer above and, if it is one entry, its index below: w^2, w^2_{13}."""
    attributes = {"data-t": term, "class": "term"}
    above = () if layer is None else (literal(layer),)
    below = () if index is None else (index,)
    tag = {(0, 0): "mrow", (1, 0): "msup", (0, 1): "msub", (1, 1): "msubsup"}[len(above), len(below)]
    return Math(tag, (identifier(letter), *below, *above), attributes)


def transposed(x: Math) -> Math:
    """(w)^T for a symbol that has something above it already, as in the text."""
    return Math("msup", (row("(", x, ")"), identifier("T")))


def partial(x: Math, term: Term, *, in_line: bool = False) -> Math:
    """∂C/∂x, as one term: a fraction, or with a slash."""
    above = row(identifier("∂"), identifier("C"))
    below = row(identifier("∂"), Math(x.tag, x.children))
    attributes = {"data-t": term, "class": "term"}
    return (
        Math("mrow", (above, operator("/"), below), attributes)
        if in_line
        else Math("mfrac", (above, below), attributes)
    )


def number(q: Quantities, key: Key, *, factor: bool = False) -> Math:
    """One entry's number. A negative factor stands in brackets, so that a product can be read: 0.5 · (−0.2)."""
    i, j = key.at_first
    text = typeset(q[key.term].numbers[0][i][j])
    attributes = {"data-k": key, "class": "number factor" if factor else "number"}
    return Math("mn", (f"({text})" if factor and text[0] == "−" else text,), attributes)


def position(q: Quantities, term: Term, place: str) -> Math:
    """An index that follows the neuron chosen on the page: the label of the column `place`, "@" or "%", of a quantity."""
    return Math("mn", (q[term].columns.labels[0],), {"data-at": f"{term}:{place}"})


def sum_over(index: str, upto: Math | None = None) -> Math:
    """Σ with its index below and, if given, its last value above."""
    sign = operator("∑")
    if upto is None:
        return Math("munder", (sign, row(*(identifier(letter) for letter in index))))
    return Math("munderover", (sign, row(identifier(index), "=", literal(1)), upto))


def fraction(above: Math, below: Math) -> Math:
    return Math("mfrac", (above, below))


def squared(x: Math) -> Math:
    return Math("msup", (x, literal(2)))
