"""The outcome of `check_backward`: a row for each check."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass


class Failed(Exception):
    """A check found something wrong. `line` shows it, in terms of `layer`, `reference` and `inputs`."""

    def __init__(self, message: str, line: str = "") -> None:
        super().__init__(message)
        self.line = line


class NotSupported(Exception):
    """The layer refuses what the check asks for, or the reference does; nothing is computed wrongly."""


@dataclass(frozen=True)
class Check:
    """One row: `status` is "passed", "failed" or "not supported"; `reproduction` has two lines where it failed."""

    name: str
    status: str
    detail: str
    reproduction: str = ""


class Conformance(tuple[Check, ...]):
    """What `check_backward` found, a `Check` for each thing that it tried. Prints as a table and what shows the failures."""

    @property
    def ok(self) -> bool:
        """Whether nothing failed. What is not supported is no failure."""
        return not self.failed

    @property
    def failed(self) -> dict[str, Check]:
        """The failures by name."""
        return {check.name: check for check in self if check.status == "failed"}

    def assert_ok(self) -> None:
        """Raises AssertionError with the whole table if anything failed. For tests."""
        if not self.ok:
            raise AssertionError(f"The backward pass failed {len(self.failed)} of {len(self)} checks.\n{self}")

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        names = max(len(check.name) for check in self)
        for check in self:
            yield f"{check.name:<{names}}  {check.status:<13}  {check.detail}".rstrip()
        causes = [name for name in ("output", "gradient") if name in self.failed]
        for name in causes[:1] or self.failed:
            yield ""
            yield f"To see {name!r} fail:"
            yield from (f"    {line}" for line in self.failed[name].reproduction.splitlines())
        if causes and len(self.failed) > 1:
            yield ""
            yield f"Other checks compare with the same numbers: mend {causes[0]!r} first."
        count = {
            status: sum(check.status == status for check in self) for status in ("passed", "failed", "not supported")
        }
        yield ""
        yield ", ".join(f"{number} {status}" for status, number in count.items()) + "."


def in_brief(error: Exception) -> str:
    """The first sentence of an error, cut where it is too long for a table."""
    sentence = re.split(r"\n|(?<=\w)\. ", str(error).strip(), maxsplit=1)[0]
    whole = f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__
    return whole if len(whole) <= 90 else f"{whole[:87]}..."
