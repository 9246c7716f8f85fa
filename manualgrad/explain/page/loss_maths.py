"""The losses' formulas as MathML: i counts the r examples and k the outputs; N is the number of all outputs."""

from __future__ import annotations

from manualgrad.explain.loss_formulas import Formula
from manualgrad.explain.page.mathml import Math, fraction, identifier, literal, operator, row, squared, sum_over


_LOG = row(identifier("log"), Math("mspace", (), {"width": "0.17em"}))


def cost(formula: Formula, a: Math, y: Math) -> Math:
    """C, given the symbols of a and y."""
    ones, squares = literal(1), (sum_over("i,k"), squared(row("(", a, "−", y, ")")))
    softmax, sigma = (row(identifier(function), "(", a, ")") for function in ("softmax", "σ"))
    if formula.name == "quadratic":
        return row(fraction(ones, row(literal(2), identifier("r"))), *squares)
    if formula.name == "mean squared":
        return row(fraction(ones, identifier("N")), *squares)
    if formula.name == "cross-entropy":
        return row(operator("−"), fraction(ones, identifier("r")), sum_over("i,k"), y, _LOG, softmax)
    both = (y, _LOG, sigma, "+", "(", ones, "−", y, ")", _LOG, "(", ones, "−", sigma, ")")
    return row(operator("−"), fraction(ones, identifier("N")), sum_over("i,k"), *both)


def output_gradient(formula: Formula, p: Math, y: Math) -> Math:
    """dC/da, given the symbols of p and y."""
    difference = row(p, "−", y)
    above = difference if formula.factor == 1 else row(literal(formula.factor), "(", difference, ")")
    return fraction(above, identifier(formula.count))
