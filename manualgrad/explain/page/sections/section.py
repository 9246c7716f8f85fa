"""What one section of the page holds."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from manualgrad.explain.page.drawing import Drawing
from manualgrad.explain.page.grids import Grid
from manualgrad.explain.page.mathml import Math, row
from manualgrad.explain.page.terms import Term


Line = Sequence[Grid | Math | str]  # side by side; a string is an operator
MOST_TERMS = 4  # of a sum that is written out


@dataclass(frozen=True)
class Section:
    """What is computed, as an equation, as matrices, and written out for one neuron.

    `row` and `column` name the columns of neurons that "@" and "%" choose from in the keys of its numbers.
    """

    phase: str
    layer: int | None
    heading: str
    sentence: str
    equations: list[Math]
    matrices: list[Line]
    written: list[list[Math]]
    drawing: Drawing
    row: Term
    column: Term | None = None
    batch: list[Grid] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    picture: Grid | None = None  # of the example, if it is an image
    name: str = ""  # the layer's own, from the user
    call: int = 0  # 1 for the second call of a layer in the forward pass

    @property
    def anchor(self) -> str:
        return self.phase.lower() + ("" if self.layer is None else f"-{self.layer}")

    @property
    def has_means(self) -> bool:
        return any(part.note for line in self.matrices for part in line if isinstance(part, Grid))


def written_sum(terms: Sequence[Sequence[Math | str]], count: int) -> list[Math]:
    """The first terms of a sum of `count`, each with its sign, so that a line can break between them."""
    parts = [row(*(("+",) if i else ()), *term) for i, term in enumerate(terms)]
    return parts if len(terms) == count <= MOST_TERMS else [*parts[: MOST_TERMS - 1], row("+", "⋯")]
