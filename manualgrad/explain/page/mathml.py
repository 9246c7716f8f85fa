"""Formulas as MathML: a tree of elements, which the template writes down with everything escaped."""

from dataclasses import dataclass, field
from typing import Any


_BETWEEN = ("=", "+", "−", "·", "⊙", "≔", "←")


@dataclass(frozen=True)
class Math:
    """One element: <tag attributes>children</tag>."""

    tag: str
    children: "tuple[Math | str, ...]"
    attributes: dict[str, Any] = field(default_factory=dict)


def row(*parts: "Math | str") -> "Math":
    """Parts side by side. A string is an operator."""
    return Math("mrow", tuple(operator(part) if isinstance(part, str) else part for part in parts))


def operator(sign: str) -> "Math":
    """A sign with room on both sides, also where it begins or ends an element; a bracket without."""
    return Math("mo", (sign,), {"form": "infix"} if sign in _BETWEEN else {})


def identifier(letter: str) -> "Math":
    return Math("mi", (letter,))


def literal(number: int | str) -> "Math":
    return Math("mn", (str(number),))


def transposed(x: "Math") -> "Math":
    """(w)^T for a symbol that has something above it already, as in the text."""
    return Math("msup", (row("(", x, ")"), identifier("T")))


def sum_over(index: str, upto: "Math | None" = None) -> "Math":
    """Σ with its index below and, if given, its last value above."""
    sign = operator("∑")
    if upto is None:
        return Math("munder", (sign, row(*(identifier(letter) for letter in index))))
    return Math("munderover", (sign, row(identifier(index), "=", literal(1)), upto))


def fraction(above: "Math", below: "Math") -> "Math":
    return Math("mfrac", (above, below))


def squared(x: "Math") -> "Math":
    return Math("msup", (x, literal(2)))
