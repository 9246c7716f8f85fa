"""The outcome of `check_backward`: a row for each check."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


class Failed(Exception):
    """A check has failed. `line` is Python that shows it, in terms of `layer`, `reference`, `inputs` and `wanted`.

    `inputs` are what the line takes if they differ from the caller's.
    """

    def __init__(self, message: str, line: str = "", inputs: Sequence[Any] | None = None) -> None:
        super().__init__(message)
        self.line, self.inputs = line, inputs


class NotSupported(Exception):
    """The layer refuses, on purpose, something that the reference does."""


class NotApplicable(Exception):
    """There is nothing to compare with: the reference does not do it either, or the device is missing."""


@dataclass(frozen=True)
class Check:
    """One row of the table.

    `status` is "passed"; "failed"; "not supported": the reference does it, the layer refuses, and `detail` has its words; or
    "not applicable": the reference does not do it either. A failed row has two lines of Python in `reproduction`, and in
    `error` the whole error that the layer raised, if it raised one.
    """

    name: str
    status: str
    detail: str
    reproduction: str = ""
    error: str = ""


class Conformance(tuple[Check, ...]):
    """The report of `check_backward`: a `Check` for each row. Prints as a table, with code that reproduces the failures."""

    @property
    def ok(self) -> bool:
        """Whether no check failed. A check that is not supported has not failed; `assert_ok` can demand that it passes."""
        return not self.failed

    @property
    def passed(self) -> dict[str, Check]:
        """The checks that passed, by name."""
        return self._with_status("passed")

    @property
    def failed(self) -> dict[str, Check]:
        """The failures by name."""
        return self._with_status("failed")

    @property
    def not_supported(self) -> dict[str, Check]:
        """What the reference does and the layer refuses, by name."""
        return self._with_status("not supported")

    def assert_ok(self, require: Collection[str] = (), strict: bool = False) -> None:
        """For tests: raise unless no check failed and the demands given here are met.

            report.assert_ok(require=("vmap", "jvp"))

        Args:
            require: names of checks that must have passed; "not supported" or "not applicable" is not enough.
            strict: the layer does everything that the reference does: nothing is "not supported".

        Raises:
            AssertionError: with the whole table.
            ValueError: an unknown name in `require`.
        """
        if isinstance(require, str):
            require = (require,)
        unknown = set(require) - {check.name for check in self}
        if unknown:
            raise ValueError(
                f"assert_ok expected `require` to name checks of this report, got {sorted(unknown)}. "
                f"They are: {', '.join(check.name for check in self)}."
            )
        if not self.ok:
            raise AssertionError(f"The backward pass failed {len(self.failed)} of {len(self)} checks.\n{self}")
        missing = [check for check in self if check.name in require and check.status != "passed"]
        missing += [check for check in self.not_supported.values() if strict and check not in missing]
        if missing:
            words = "; ".join(f"{check.name} is {check.status} ({check.detail})" for check in missing)
            raise AssertionError(f"The backward pass must do more: {words}.\n{self}")

    def _with_status(self, status: str) -> dict[str, Check]:
        return {check.name: check for check in self if check.status == status}

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        causes = [name for name in ("output", "gradient") if name in self.failed]
        if causes and len(self.failed) > 1:
            yield f"Mend {causes[0]!r} first: other checks compare with the same numbers."
            yield ""
        names = max(len(check.name) for check in self)
        first: dict[str, str] = {}  # the name of the first check that failed with an error, by the error
        for check in self:
            repeats = check.error and first.setdefault(check.error, check.name) != check.name
            detail = f"the same error as {first[check.error]!r}" if repeats else check.detail
            yield f"{check.name:<{names}}  {check.status:<14}  {detail}".rstrip()
        note = ["# layer and reference: what you passed to check_backward"]
        for name in causes[:1] or self.failed:
            yield ""
            yield f"To see {name!r} fail:"
            yield from (f"    {line}" for line in [*note, *self.failed[name].reproduction.splitlines()])
            note = []
        statuses = ("passed", "failed", "not supported", "not applicable")
        count = {status: len(self._with_status(status)) for status in statuses}
        yield ""
        yield ", ".join(f"{number} {status}" for status, number in count.items()) + "."
