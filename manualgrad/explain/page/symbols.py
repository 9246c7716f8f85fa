"""The text's symbols, each tied to the numbers it stands for."""

from __future__ import annotations

from manualgrad.explain.page.mathml import Math, partial, row, sum_over, symbol
from manualgrad.explain.page.terms import Term


LETTERS = {"a": "a", "x": "x", "z": "z", "w": "w", "W": "w", "b": "b", "B": "b", "d": "δ", "y": "y", "p": "p", "o": "a"}


def of_term(term: Term, index: Math | None = None, *, in_line: bool = False) -> Math:
    """The symbol of a quantity: w2 -> w^2, u2 -> ∂C/∂w^2, s2 -> σ′(z^2)."""
    letter, layer, _ = term
    if letter == "og":
        return partial(symbol("a", "out", term, index=index), term, in_line=in_line)
    if letter in "guv":
        below = {"g": "a", "u": "w", "v": "b"}[letter]
        return partial(symbol(below, layer, term, index=index), term, in_line=in_line)
    if letter in "UV":
        calls = symbol({"U": "w", "V": "b"}[letter], layer, term, index=index)
        return row(sum_over("calls"), partial(calls, term, in_line=in_line))
    if letter == "s":
        return row(symbol("σ′", None, term), "(", symbol("z", layer, Term("z", layer), index=index), ")")
    if letter == "o":
        return symbol("a", "out", term, index=index)
    return symbol(LETTERS[letter], layer, term, index=index)
