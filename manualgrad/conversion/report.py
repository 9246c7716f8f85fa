"""What `convert` has converted in a model, and what it left alone and why."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import is_lazy

from manualgrad.conversion.obstacles import is_activation, is_linear_of_its_own, obstacle
from manualgrad.conversion.selection import candidates
from manualgrad.explain.html_table import html_table
from manualgrad.layers.activation_modules import ByHand
from manualgrad.layers.dense import Dense


@dataclass(frozen=True)
class Conversion:
    """One linear layer or activation of a model: `status` is "converted", "plain" (could be converted) or "left"."""

    name: str
    type: str
    status: str
    note: str
    kind: str = "linear"  # or "activation"
    other_parameters: int = 0  # in a layer that is linear but no nn.Linear; what several layers share counts once


class ConversionReport(tuple[Conversion, ...]):
    """A `Conversion` for each linear layer and activation, in the model's order; prints as a table."""

    @property
    def converted(self) -> list[str]:
        """The names of the converted linear layers."""
        return [row.name for row in self if row.status == "converted" and row.kind == "linear"]

    @property
    def converted_activations(self) -> list[str]:
        """The names of the converted activations."""
        return [row.name for row in self if row.status == "converted" and row.kind == "activation"]

    @property
    def left(self) -> dict[str, str]:
        """{name: why} of all the other linear layers."""
        return {row.name: row.note for row in self if row.status != "converted" and row.kind == "linear"}

    @property
    def other_parameters(self) -> int:
        """How many parameters are in layers that are linear but no nn.Linear, such as the Conv1D of GPT-2."""
        return sum(row.other_parameters for row in self)

    def __str__(self) -> str:
        cells = [_HEADER, *map(_cells, self)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], self.summary])

    def _repr_html_(self) -> str:
        return html_table(_HEADER, map(_cells, self), self.summary)

    @property
    def summary(self) -> str:
        """One sentence: how many are converted."""
        activations = sum(row.kind == "activation" for row in self)
        converted = f"{len(self.converted)} of {len(self) - activations} linear layers"
        if activations:
            converted += f" and {len(self.converted_activations)} of {activations} activations"
        summary = f"{converted} converted."
        if self.other_parameters:
            types = ", ".join(dict.fromkeys(row.type for row in self if row.other_parameters))
            summary += f" {self.other_parameters:,} parameters are in layers that are linear but no nn.Linear: {types}."
        return summary


_HEADER = ("layer", "type", "status", "note")


def _cells(row: Conversion) -> tuple[str, ...]:
    return row.name, row.type, row.status, row.note


def conversion_report(model: nn.Module) -> ConversionReport:
    """What `convert` has converted in the model, what it left or would leave alone, and why. Changes nothing.

    Raises:
        TypeError: not a module.
    """
    rows: list[Conversion] = []
    counted: set[nn.Parameter] = set()
    for module, names in candidates(model, "conversion_report").items():
        status, note = _status(module)
        if len(names) > 1:
            note = "; ".join(filter(None, [note, f"also {', '.join(names[1:])}"]))
        new = {p for p in module.parameters(recurse=False) if is_linear_of_its_own(module) and not is_lazy(p)} - counted
        counted |= new
        kind = "activation" if is_activation(module) else "linear"
        rows.append(Conversion(names[0], type(module).__name__, status, note, kind, sum(p.numel() for p in new)))
    return ConversionReport(rows)


def _status(module: nn.Module) -> tuple[str, str]:
    if isinstance(module, ByHand) or (isinstance(module, Dense) and module.path is not None):
        return "converted", ""
    if type(module) is Dense:
        return "left", "a Dense from the start"
    reason = obstacle(module)
    if reason is None:
        return "plain", "not selected by include and exclude, or convert has not been called"
    return "left", reason
