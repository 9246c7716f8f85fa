"""What one step of the page holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from manualgrad.explain.page.drawing import Drawing
from manualgrad.explain.page.grids import Grid
from manualgrad.explain.page.mathml import Math, operator
from manualgrad.explain.page.terms import Term


Line = Sequence["Grid | Math | str"]  # side by side; a string is an operator
MOST_TERMS = 4  # of a sum that is written out


@dataclass(frozen=True)
class Step:
    """A step: what is computed, as an equation, as matrices, and written out for one neuron.

    `row` and `column` name the columns of neurons that "@" and "%" choose from in the keys of its numbers.
    """

    anchor: str
    phase: str
    short: str
    heading: str
    name: str | None  # the layer's own, from the user
    sentence: str
    equations: list[Math]
    matrices: list[Line]
    written: list[list[Math]]
    drawing: Drawing
    call: int = 0  # 1 for the second call of a layer in the forward pass
    row: Term | None = None
    column: Term | None = None
    picture: Grid | None = None  # of the example, if it is an image
    batch: list[Grid] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def has_means(self) -> bool:
        parts = [part for line in self.matrices for part in line if isinstance(part, Grid)]
        return any(grid.note for grid in parts)


def written_sum(terms: Sequence[Sequence[Math | str]], count: int) -> list[Math]:
    """The first terms of a sum of `count`, each with its sign, so that a line can break between them."""
    parts = [Math("mrow", (*(() if i == 0 else (operator("+"),)), *_elements(term))) for i, term in enumerate(terms)]
    if len(terms) == count <= MOST_TERMS:
        return parts
    return [*parts[: MOST_TERMS - 1], Math("mrow", (operator("+"), operator("⋯")))]


def _elements(parts: Sequence[Math | str]) -> tuple[Math, ...]:
    return tuple(operator(part) if isinstance(part, str) else part for part in parts)
