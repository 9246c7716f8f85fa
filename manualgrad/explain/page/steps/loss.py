"""The cost C of the outputs, and its output gradient dC/da, where backpropagation begins."""

from __future__ import annotations

from manualgrad.explain.loss_formulas import Formula
from manualgrad.explain.page import grids
from manualgrad.explain.page.drawing import Look, Shows, draw
from manualgrad.explain.page.loss_maths import cost, output_gradient
from manualgrad.explain.page.mathml import identifier, literal, number, position, row
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.steps.step import Line, Step
from manualgrad.explain.page.symbols import of_term
from manualgrad.explain.page.terms import COST, PREDICTION, TARGETS, Key, Term


def loss(q: Quantities, name: str, formula: Formula | None, *, has_classes: bool) -> Step:
    depth = len(q.chained)
    value = number(q, Key(COST, 0, 0))
    outputs, gradient = q.output_term(), q.output_gradient_term()
    has_p = PREDICTION in q
    compared = PREDICTION if has_p else outputs
    equations = [row(identifier("C"), "=", value)]
    if formula:
        of_output = row(identifier("i"), identifier("k"))
        equations = [
            row(
                identifier("C"),
                "=",
                cost(formula, of_term(outputs, of_output), of_term(TARGETS, of_output)),
                "=",
                value,
            ),
            row(of_term(gradient), "=", output_gradient(formula, of_term(compared), of_term(TARGETS))),
        ]
    if has_p and formula and formula.function:
        equations.insert(1, row(of_term(PREDICTION), "=", identifier(formula.function), "(", of_term(outputs), ")"))
    index = position(q, q.drawn(gradient), "@")
    written = [row(of_term(gradient, index, in_line=True), "=")]
    if formula:
        p, y = number(q, Key(q.drawn(compared), "*", "@")), number(q, Key(q.drawn(TARGETS), "*", "@"), factor=True)
        twice = () if formula.factor == 1 else (literal(formula.factor), "·")
        written.append(row(*twice, "(", p, "−", y, ")", "/", number(q, Key(Term(formula.count), 0, 0)), "="))
    written.append(number(q, Key(q.drawn(gradient), "*", "@")))
    shown = [outputs, *([PREDICTION] if has_p else []), TARGETS]
    matrices: Line = [part for term in shown for part in (grids.column(q, term, of_term(term)), ",")][:-1]
    return Step(
        anchor="loss",
        phase="Loss",
        short="C",
        heading="Loss and its output gradient",
        name=name,
        sentence=(
            "The cost C says how far the outputs are from the targets y. Its derivative by each output starts "
            "backpropagation: where it is positive, a smaller output would cost less."
        ),
        equations=equations,
        matrices=[[*matrices, "→", grids.column(q, gradient, of_term(gradient, in_line=True))]],
        written=[written],
        drawing=draw(q, _look(q, outputs, gradient), depth),
        row=outputs,
        batch=[grids.batch(q, term, of_term(term, in_line=True)) for term in (*shown, gradient)],
        notes=_notes(q, formula, has_classes),
    )


def _look(q: Quantities, outputs: Term, gradient: Term) -> Look:
    has_its_target = q[TARGETS].columns.size == q[outputs].columns.size
    target = (("y", TARGETS),) if has_its_target else ()

    def neurons(column: Term) -> Shows:
        if column == outputs:
            return Shows(column, active=True, minor=(*target, ("∂C/∂a", gradient)))
        return Shows(column)

    return Look(
        neurons,
        weights=lambda j: Shows(Term("w", j)),
        biases=lambda j: Shows(Term("b", j)),
        caption="Circles: activations a. Under the outputs: target y and ∂C/∂a. Lines: weights w.",
    )


def _notes(q: Quantities, formula: Formula | None, has_classes: bool) -> list[str]:
    notes = []
    if formula is None:
        notes.append("No formula that the page knows gives this loss. Its value and gradient are those of the step.")
    else:
        of_all = "; N is the number of all outputs" if formula.count == "N" else ""
        notes.append(f"i counts the r examples of the batch and k the outputs{of_all}.")
    if has_classes:
        notes.append("The targets are class indices. They are shown as rows y with a 1 at the class.")
    if not q.outputs_chained:
        notes.append("Between the last Dense layer and the loss stands another part of the model.")
    return notes
