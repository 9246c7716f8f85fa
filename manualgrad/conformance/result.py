"""The outcome of `check_backward`: a row for each check."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from manualgrad.explain.html_table import html_table


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

    @property
    def cure(self) -> str:
        """What to do about a failure; "" for other rows."""
        return CURES.get(self.name, "") if self.status == "failed" else ""


# For each check, what usually mends the layer.
CURES = {
    "output": "Compute in forward what the reference computes, in the dtype of the inputs.",
    "gradient": "Derive backward again: one gradient for each input of forward, in its shape and dtype, summed over the batch.",
    "frozen inputs": "Ask ctx.needs_input_grad before each gradient and each saved tensor; return None where it is False.",
    "gradcheck": "Compute in the dtype of the inputs throughout; a gradient that is rounded on the way shows here alone.",
    "gradgradcheck": "Write backward in differentiable operations on saved inputs or outputs, or mark it @once_differentiable.",
    "complex": "Multiply by the conjugate (x.conj()), or raise in forward for complex inputs, or pass only=('real',).",
    "other inputs": "Look for a branch of forward or backward that depends on the numbers or sizes.",
    "non-contiguous": "Use reshape, not view, and never as_strided or data_ptr without .contiguous().",
    "expanded": "Do not write into inputs or into views of them: rows may share their memory.",
    "upstream layout": "Use reshape, not view, on the upstream gradient; sum() sends one with stride 0.",
    "batch of one": "Do not squeeze; name the axes that you sum over.",
    "empty batch": "Sum instead of dividing by the number of rows; give reshape every size, without -1.",
    "more axes": "Flatten all axes but the last with x.reshape(-1, x.size(-1)) before you sum over rows, or pass only=('2-d',).",
    "fewer axes": "Treat a vector as a batch of one, raise in forward, or pass only=('2-d',).",
    "in place": "Work on a copy: clone() what you change, and return new tensors.",
    "memory leak": "Keep tensors with ctx.save_for_backward, not as attributes or in lists.",
    "saved tensors": "Save inputs or outputs with ctx.save_for_backward, and compute the rest again in backward.",
    "determinism": "Draw no random numbers in backward, and do not depend on what an earlier call has left.",
    "no_grad": "Compute the same values whether or not gradients are wanted.",
    "surroundings": "Put back what you change in PyTorch's settings, and draw random numbers only where the reference does.",
    "autocast": "Decorate forward and backward with torch.amp.custom_fwd and custom_bwd, or cast what you save to one dtype.",
    "torch.compile": "Write forward without ctx, with setup_context, in PyTorch operations alone.",
    "vmap": "Set generate_vmap_rule = True and write forward with setup_context, or write a vmap staticmethod.",
    "jvp": "Correct the jvp staticmethod: it gets the tangents of all inputs and returns those of all outputs.",
    "copies": "Keep all state in parameters, buffers and plain attributes, and write no __deepcopy__ of your own.",
    "cuda": "Make new tensors on the device of the inputs, as torch.zeros_like does.",
}


class Conformance(tuple[Check, ...]):
    """The report of `check_backward`: a `Check` for each row. Prints as a table, with code that reproduces the failures."""

    _read = False  # whether anybody has asked what was found

    def __bool__(self) -> bool:
        """As in `assert mg.check_backward(...)`: `ok`."""
        return self.ok

    def __iter__(self) -> Iterator[Check]:
        self._read = True
        return super().__iter__()

    def __del__(self) -> None:
        if not self._read and (failed := [check.name for check in tuple.__iter__(self) if check.status == "failed"]):
            warnings.warn(
                f"check_backward found {len(failed)} failures ({', '.join(failed)}), and nobody has looked at its report. "
                "Call assert_ok() on it, or print it.",
                stacklevel=2,
            )

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
        __tracebackhide__ = True  # pytest shows the table, and not this function
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

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(("check", "status", "detail"), self._rows(), "\n".join([*self._mend(), *self._below()]))

    def _lines(self) -> Iterator[str]:
        yield from self._mend()
        names = max(len(check.name) for check in self)
        for name, status, detail in self._rows():
            yield f"{name:<{names}}  {status:<14}  {detail}".rstrip()
        yield ""
        yield from self._below()

    def _causes(self) -> list[str]:
        return [name for name in ("output", "gradient") if name in self.failed]

    def _mend(self) -> Iterator[str]:
        if (causes := self._causes()) and len(self.failed) > 1:
            yield f"Mend {causes[0]!r} first: other checks compare with the same numbers."
            yield ""

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        """Name, status and detail of each check, the failed ones first and each with a row for its cure."""
        first: dict[str, str] = {}  # the name of the first check that failed with an error, by the error
        for check in sorted(self, key=lambda check: check.status != "failed"):
            repeats = check.error and first.setdefault(check.error, check.name) != check.name
            yield check.name, check.status, f"the same error as {first[check.error]!r}" if repeats else check.detail
            if check.cure and not repeats:
                yield "", "", f"Cure: {check.cure}"

    def _below(self) -> Iterator[str]:
        note = ["# layer and reference: what you passed to check_backward"]
        for name in self._causes()[:1] or self.failed:
            yield f"To see {name!r} fail:"
            yield from (f"    {line}" for line in [*note, *self.failed[name].reproduction.splitlines()])
            yield ""
            note = []
        statuses = ("passed", "failed", "not supported", "not applicable")
        count = {status: len(self._with_status(status)) for status in statuses}
        yield ", ".join(f"{number} {status}" for status, number in count.items()) + "."
