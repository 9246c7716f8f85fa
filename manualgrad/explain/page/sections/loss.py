"""The cost C of the outputs, and its output gradient dC/da, where backpropagation begins.

In the formulas i counts the r examples and k the outputs; N is the number of all outputs.
"""

from manualgrad.explain.loss_formulas import Formula
from manualgrad.explain.page import grids
from manualgrad.explain.page.drawing import Look, Shows, draw
from manualgrad.explain.page.mathml import Math, fraction, identifier, literal, operator, row, squared, sum_over
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.sections.section import Line, Section
from manualgrad.explain.page.symbols import number, of_term, position
from manualgrad.explain.page.terms import COST, PREDICTION, TARGETS, Term


def loss(q: Quantities, name: str, formula: Formula | None, *, has_classes: bool) -> Section:
    value, outputs, gradient = number(q, COST, 0, 0), q.output_term(), q.output_gradient_term()
    shown = [outputs, *([PREDICTION] if PREDICTION in q else []), TARGETS]
    compared, y = shown[-2], of_term(TARGETS)
    equations = [row(identifier("C"), "=", value)]
    written = [row(of_term(gradient, position(q, gradient, "@"), in_line=True), "=")]
    if formula:
        of_output = row(identifier("i"), identifier("k"))
        cost = _cost(formula, of_term(outputs, of_output), of_term(TARGETS, of_output))
        equations = [row(identifier("C"), "=", cost, "=", value)]
        if formula.function:
            equations.append(row(of_term(PREDICTION), "=", identifier(formula.function), "(", of_term(outputs), ")"))
        difference, twice = row(of_term(compared), "−", y), literal(formula.factor)
        above = difference if formula.factor == 1 else row(twice, "(", difference, ")")
        equations.append(row(of_term(gradient), "=", fraction(above, identifier(formula.count))))
        numbers = number(q, compared, "*", "@"), "−", number(q, TARGETS, "*", "@", factor=True)
        factor = () if formula.factor == 1 else (twice, "·")
        written.append(row(*factor, "(", *numbers, ")", "/", number(q, Term(formula.count), 0, 0), "="))
    matrices: Line = [part for term in shown for part in (grids.column(q, term), ",")][:-1]
    return Section(
        "Loss",
        None,
        heading="Loss and its output gradient",
        sentence=(
            "The cost C says how far the outputs are from the targets y. Its derivative by each output starts "
            "backpropagation: where it is positive, a smaller output would cost less."
        ),
        equations=equations,
        matrices=[[*matrices, "→", grids.column(q, gradient)]],
        written=[[*written, number(q, gradient, "*", "@")]],
        drawing=draw(q, len(q.chained), _look(q, outputs, gradient)),
        row=outputs,
        batch=[grids.batch(q, term) for term in (*shown, gradient)],
        notes=_notes(q, formula, has_classes),
        name=name,
    )


def _cost(formula: Formula, a: Math, y: Math) -> Math:
    """C, given the symbols of a and y."""
    ones, squares = literal(1), (sum_over("i,k"), squared(row("(", a, "−", y, ")")))
    log = row(identifier("log"), Math("mspace", (), {"width": "0.17em"}))
    softmax, sigma = (row(identifier(function), "(", a, ")") for function in ("softmax", "σ"))
    if formula.name == "quadratic":
        return row(fraction(ones, row(literal(2), identifier("r"))), *squares)
    if formula.name == "mean squared":
        return row(fraction(ones, identifier("N")), *squares)
    terms: tuple[Math | str, ...] = (y, log, softmax)
    if formula.name == "binary cross-entropy":
        terms = (y, log, sigma, "+", "(", ones, "−", y, ")", log, "(", ones, "−", sigma, ")")
    return row(operator("−"), fraction(ones, identifier(formula.count)), sum_over("i,k"), *terms)


def _look(q: Quantities, outputs: Term, gradient: Term) -> Look:
    has_its_target = q[TARGETS].columns.size == q[outputs].columns.size
    minor = (*((("y", TARGETS),) if has_its_target else ()), ("∂C/∂a", gradient))
    return Look(
        lambda column: Shows(column, active=True, minor=minor) if column == outputs else Shows(column),
        "Circles: activations a. Under the outputs: target y and ∂C/∂a. Lines: weights w.",
    )


def _notes(q: Quantities, formula: Formula | None, has_classes: bool) -> list[str]:
    notes = ["No formula that the page knows gives this loss. Its value and gradient are those of the step."]
    if formula:
        of_all = "; N is the number of all outputs" if formula.count == "N" else ""
        notes = [f"i counts the r examples of the batch and k the outputs{of_all}."]
    if has_classes:
        notes.append("The targets are class indices. They are shown as rows y with a 1 at the class.")
    if not q.outputs_chained:
        notes.append("Between the last Dense layer and the loss stands another part of the model.")
    return notes
