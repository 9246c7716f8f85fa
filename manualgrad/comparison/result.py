"""The result of a comparison: a row for each gradient, and how they are shown."""

import json
import math
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from manualgrad.explain.figures import COLOURS, new_figure
from manualgrad.explain.html_table import html_table
from manualgrad.explain.printable import printable
from manualgrad.explain.text_blocks import table


@dataclass(frozen=True)
class Row:
    """One gradient, computed three ways. Errors are in units of the gradient itself; see `Comparison`.

    Entries that are alike NaN or infinite are left out of them; where no others are left, they are NaN.
    """

    name: str
    shape: tuple[int, ...]
    max_absolute_error: float  # max |by hand - autograd|
    relative_error: float  # the same over max |autograd|
    error_by_hand: float  # max |by hand - truth| over max |truth|
    error_by_autograd: float  # max |autograd - truth| over max |truth|
    ok: bool
    factored: bool = False  # by hand it was a `FactoredGradient`
    not_finite: int = 0  # how many entries are alike NaN or infinite by hand and by autograd: nothing is shown there
    zero_up_to_rounding: bool = (
        False  # no larger than what rounding does to its terms, to which its errors are relative
    )

    @property
    def shows_nothing(self) -> bool:
        """Whether there are entries, and all of them are alike NaN or infinite by hand and by autograd."""
        return 0 < self.not_finite == math.prod(self.shape)


@dataclass(frozen=True)
class Comparison:
    """Gradients by hand, by autograd and by autograd in float64 ("truth"), a row for each parameter and input.

    A row is ok if each entry by hand differs from autograd's, or from the truth, by no more than the tolerance relative to that
    entry (or to the mean entry, if that is larger), and what rounding can do to the terms of that very sum: sum delta for a
    bias, delta^T a for a weight, in the layers above too. A gradient no larger than that is zero up to rounding; its
    errors are relative to the largest of these terms. NaN or inf count as equal only where both have them; a row of nothing
    else shows nothing, and is not ok.

    It is true, as in `assert mg.compare(...)`, if it is ok.
    """

    rows: tuple[Row, ...]
    loss_by_hand: float
    loss_by_autograd: float
    anything_by_hand: bool = True  # else autograd was compared with itself
    no_truth: str = ""  # why there are no gradients in float64; errors against them are NaN then

    @property
    def ok(self) -> bool:
        """Whether something is by hand, and every row is ok."""
        return self.anything_by_hand and all(row.ok for row in self.rows)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def max_relative_error(self) -> float:
        """Over the rows that show something; NaN if none does."""
        shown = [row.relative_error for row in self.rows if not row.shows_nothing]
        return max(shown, default=math.nan if self.rows else 0.0)

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, "max_relative_error": self.max_relative_error, **asdict(self)}

    def to_json(self) -> str:
        """Everything, as JSON. Infinite errors and NaN are written as null, since JSON has neither."""
        with_nan = json.dumps(self.to_dict())
        return json.dumps(json.loads(with_nan, parse_constant=lambda _: None), indent=2, allow_nan=False)

    def __str__(self) -> str:
        width = shutil.get_terminal_size().columns  # 80 where there is no terminal
        lines = table(_HEADER, [_cells(row) for row in self.rows], width, left=2)
        return "\n".join([*lines, *(textwrap.fill(line, width) for line in self._verdict().splitlines())])

    def _repr_html_(self) -> str:
        return html_table(_HEADER, map(_cells, self.rows), self._verdict())

    def _verdict(self) -> str:
        wrong = [printable(row.name) for row in self.rows if not row.ok]
        factored = [printable(row.name) for row in self.rows if row.factored]
        verdict = f"NOT ok: {', '.join(wrong)}." if wrong else f"All {len(self.rows)} rows ok."
        if not wrong and not self.anything_by_hand:
            verdict = "NOT ok: nothing is by hand."
        verdict += f" Largest relative difference {self.max_relative_error:.1e}."
        if factored:
            verdict += f" Factored by hand: {', '.join(factored)}."
        return "\n".join([verdict, *self.caveats()])

    def caveats(self) -> Iterator[str]:
        """What the rows do not show, a line for each reason."""
        if not self.anything_by_hand:
            yield (
                "Nothing here is by hand: no Dense was called and the loss is not manualgrad's, "
                "so autograd was compared with itself. Call mg.convert(model) first."
            )
        if self.no_truth:
            yield f"No float64 truth, by hand is compared with autograd alone: the model does not run in float64 ({self.no_truth})."
        not_finite: dict[str, list[str]] = {caveat: [] for caveat in _NOT_FINITE}
        for row in self.rows:
            if row.shows_nothing:
                not_finite[_NOT_FINITE[not math.isnan(row.error_by_hand)]].append(printable(row.name))
            elif row.not_finite:
                entries = f"{printable(row.name)} ({row.not_finite} of {math.prod(row.shape)} entries)"
                not_finite[_NOT_FINITE[2]].append(entries)
        yield from (caveat.format(", ".join(names)) for caveat, names in not_finite.items() if names)

    def plot(self) -> Any:
        """A matplotlib figure: both errors against the truth, a pair of bars for each row, cut off at 1000.

        Raises MissingExtraError where the `demo` extra is not installed."""
        from manualgrad.extras import require

        require("matplotlib", extra="demo", purpose="Comparison.plot()")
        figure = new_figure(7, 0.5 * len(self.rows) + 1.6)
        axes = figure.add_subplot()
        y = range(len(self.rows))
        for label, name, shift, colour in zip(("by hand", "autograd"), _ERRORS[2:], (-0.2, 0.2), COLOURS, strict=False):
            lengths = [min(getattr(row, name), _LONGEST_BAR) for row in self.rows]
            axes.barh([i + shift for i in y], lengths, height=0.38, label=label, color=colour)
        axes.set_yticks(y, [printable(row.name) for row in self.rows])
        axes.invert_yaxis()
        axes.set_xscale("symlog", linthresh=1e-17)
        axes.set_xlabel("error relative to the largest entry of the float64 gradient (no unit)")
        axes.set_title("Gradients against the float64 truth")
        axes.legend()
        return figure


_NOT_FINITE = (
    "Not finite in all three ways: {}. Nothing is shown there: look for NaN or infinity in inputs, targets and parameters.",
    "Finite in float64 alone: {}. Nothing is shown there: the numbers exceed their dtype. Scale the loss down, or compare "
    "in a wider dtype.",
    "Not finite by hand and by autograd in part: {}. Only the other entries are compared there.",
)
_LONGEST_BAR = 1e3  # an infinite error has a bar too

_ERRORS = ("max_absolute_error", "relative_error", "error_by_hand", "error_by_autograd")
_OF_ERRORS = ("max |by hand - autograd|", "relative", "by hand vs float64", "autograd vs float64")
_HEADER = ("gradient", "shape", *_OF_ERRORS, "ok")


def _cells(row: Row) -> tuple[str, ...]:
    errors = [getattr(row, name) for name in _ERRORS]
    written = ("-" if math.isnan(e) and not row.shows_nothing else f"{e:.1e}" for e in errors)
    ok = "zero up to rounding" if row.zero_up_to_rounding else "yes" if row.ok else "NO"
    return (printable(row.name), "x".join(map(str, row.shape)) or "scalar", *written, ok)
