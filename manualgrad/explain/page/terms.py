"""What the page calls its quantities, and the entries of these. They become text only in the page itself.

a z   activation and weighted sum           g   dC/da             w b     weight and bias before the step
s     sigma'(z)                             d   delta = dC/dz     W B     after it
x     input of a layer that is not the      u   dC/dw             y o p   targets, outputs, and softmax
      output of the layer below             v   dC/db                     or sigma of the outputs
                                                                  og      dC/d outputs
U V   u and v summed over all calls of a layer that is used more than once
C     the cost                              eta the learning rate, if the optimizer has one
r     examples in the batch; r1 of layer 1  N   number of all outputs
"""

from typing import NamedTuple


class Term(NamedTuple):
    """A quantity of a layer, counted from 1 (a of layer 0 is the input), or of the whole net."""

    letter: str
    layer: int | None = None
    in_drawing: bool = False  # its entries for the neurons that are drawn, where these are not all

    def __str__(self) -> str:
        return f"{self.letter}{'' if self.layer is None else self.layer}{'~' if self.in_drawing else ''}"

    @property
    def is_weight(self) -> bool:
        """Whether its rows are neurons, and not examples."""
        return self.letter in ("w", "u", "W", "U")

    @property
    def is_bias(self) -> bool:
        return self.letter in ("b", "v", "B", "V")

    @property
    def is_single_number(self) -> bool:
        return self.letter in ("C", "N", "eta", "r")


class Key(NamedTuple):
    """An entry. "*" is the example chosen on the page, "@" and "%" are the neurons chosen there."""

    term: Term
    row: int | str
    column: int | str

    def __str__(self) -> str:
        return f"{self.term}:{self.row}:{self.column}"


COST = Term("C")
ETA = Term("eta")
TARGETS = Term("y")
PREDICTION = Term("p")
