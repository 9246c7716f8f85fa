"""What a measurement returns: a row for each way to train each case; prints as tables."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import groupby
from typing import Any, NamedTuple

from manualgrad.bench.layers import Layer
from manualgrad.bench.optimizers import FORMS
from manualgrad.bench.ways import OURS
from manualgrad.explain.html_table import html_table


FASTER, LIGHTER, NOISE = 1.05, 0.9, 0.97  # times as fast, share of the memory: from where on it is worth it, and equal


class Row(NamedTuple):
    """One way to train one case. None: not measured, and `note` says why."""

    model: str
    optimizer: str
    clip: bool
    machine: str
    batch: int
    way: str
    seconds: float | None = None  # of a step: median and quartiles
    lower: float | None = None
    upper: float | None = None
    speed: float | None = None  # seconds of the fastest plain PyTorch over these: above 1, this way is faster
    peak_bytes: int | None = None  # above the weights, the batch and the optimizer's state
    weights_apart: float | None = None  # from the plain ones after five steps, over how far these have moved
    note: str = ""
    layers: tuple[Layer, ...] = ()  # of the factored way


class Rows(tuple[Row, ...]):
    """A `Row` for each way to train each case; `print` shows them as tables, with the verdict of each case below."""

    def __str__(self) -> str:
        blocks = (_parts(list(rows)) for _, rows in groupby(self, lambda row: row[:4]))
        return "\n\n".join(
            "\n".join(line for part in parts for line in (table(part) if isinstance(part, list) else [part]))
            for parts in blocks
        )

    def _repr_html_(self) -> str:
        parts = (part for _, rows in groupby(self, lambda row: row[:4]) for part in _parts(list(rows)))
        return "".join(
            html_table(part[0], part[1:]) if isinstance(part, list) else f"<p>{escape(part)}</p>"
            for part in parts
            if part
        )

    def verdicts(self) -> list[str]:
        """For each case, in one sentence, whether it is worth it."""
        return [verdict(list(rows)) for _, rows in groupby(self, lambda row: row[:5])]


def verdict(rows: list[Row]) -> str:
    """Of one case."""
    plain = min(
        (row for row in rows if row.way in FORMS and row.seconds), key=lambda row: row.seconds or 0, default=None
    )
    ours = [row for row in rows if row.way in OURS and row.speed]
    if plain is None or not ours:
        return "Nothing to compare."

    def memory(row: Row) -> float | None:
        assert plain is not None
        return row.peak_bytes / plain.peak_bytes if plain.peak_bytes and row.peak_bytes is not None else None

    def worth(row: Row) -> bool:
        share = memory(row)
        return (row.speed or 0) >= FASTER or ((row.speed or 0) >= NOISE and share is not None and share <= LIGHTER)

    best = max(filter(worth, ours), key=lambda row: row.speed or 0, default=None)
    fastest = best or max(ours, key=lambda row: row.speed or 0)
    share = memory(fastest)
    needs = "" if share is None else f" and {share:.0%} of its peak memory beyond weights and state"
    what = f"{fastest.way!r} takes {1 / (fastest.speed or 1):.0%} of the time of {plain.way!r}{needs}"
    return f"batch {rows[0].batch}: {'worth it' if best else 'not worth it'}: {what}."


def _parts(rows: list[Row]) -> Iterator[str | list[list[str]]]:
    """Lines, and tables as the cells of their lines, of one model, optimizer and machine."""
    first = rows[0]
    yield f"{first.model}, {first.optimizer}{', clipped by norm' if first.clip else ''}; {first.machine}"
    yield _cells(rows)
    yield from (f"{v[0].upper()}{v[1:]}" for v in Rows(rows).verdicts())
    notes: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.note:
            notes.setdefault((row.way, row.note), []).append(str(row.batch))
    yield from (f"{way}, batch {' '.join(batches)}: {note}" for (way, note), batches in notes.items())
    for batch, layers in {row.batch: row.layers for row in rows if row.layers}.items():
        yield ""
        yield [[f"linear layers, batch {batch}", "shape", "gradient"], *_layer_cells(layers)]


def _cells(rows: list[Row]) -> list[list[str]]:
    """A line for each way; for each batch its ms, how many times as fast as plain, and MiB, where any was measured."""
    found = {(row.way, row.batch): row for row in rows if row.seconds is not None}
    columns: list[tuple[str, list[str]]] = [("", list(dict.fromkeys(way for way, _ in found)))]
    for batch in dict.fromkeys(row.batch for row in rows):
        of_batch = [found.get((way, batch)) for way in columns[0][1]]
        columns.append((f"batch {batch}: ms", [_number(row and row.seconds, 1e3) for row in of_batch]))
        columns.append(("x plain", [_number(row and row.speed, 1, ".2f") for row in of_batch]))
        if any(row and row.peak_bytes is not None for row in of_batch):
            columns.append(("peak MiB", [_number(row and row.peak_bytes, 2**-20) for row in of_batch]))
    return [[heading for heading, _ in columns], *map(list, zip(*(cells for _, cells in columns), strict=True))]


def _layer_cells(layers: tuple[Layer, ...]) -> Iterator[list[str]]:
    for layer in layers:
        count = f" ({layer.layers})" if layer.layers > 1 else ""
        yield [f"{layer.names}{count}", layer.shape, f"{'factored, ' if layer.factored else ''}{layer.why}"]


def table(cells: list[list[str]]) -> list[str]:
    """Aligned lines: the first column to the left, numbers to the right, a rule below the headings."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numbers = [all(cell[:1].isdigit() or cell == "-" for cell in column) for column in zip(*cells[1:], strict=True)]
    lines = [
        "  ".join(
            cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(line, widths, numbers, strict=True)
        )
        for line in cells
    ]
    return [lines[0].rstrip(), "-" * len(lines[0]), *(line.rstrip() for line in lines[1:])]


def _number(value: Any, unit: float, form: str = "") -> str:
    if value is None:
        return "-"
    return format(value * unit, form or (".0f" if value * unit >= 99.95 else ".3g"))
