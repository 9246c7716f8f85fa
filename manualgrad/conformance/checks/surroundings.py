"""Checks of what surrounds a layer: grad mode, random numbers, PyTorch's settings."""

from __future__ import annotations

from typing import Any

import torch

from manualgrad.conformance.case import Case, output_names, outputs
from manualgrad.conformance.diagnosis import expect_equal
from manualgrad.conformance.refusal import refused
from manualgrad.conformance.result import Failed


def without_gradients(case: Case) -> str:
    """The reference's output under torch.no_grad, where layers often take another path."""
    line = "with torch.no_grad(): print(layer(*inputs), reference(*inputs))"
    with torch.no_grad():
        expected = outputs(case.reference, case.leaves())
        try:
            actual = outputs(case.layer, case.leaves())
        except Exception as error:
            raise refused(error, line, "under no_grad") from error
    names = [f"under no_grad, {name}" for name in output_names(len(expected))]
    expect_equal(names, actual, expected, case.exact_outputs, line=line)
    return "the same output under no_grad"


def surroundings(case: Case) -> str:
    """Settings of the process stay as they were, and random numbers are drawn only if the reference draws some."""
    before = settings()
    try:
        ours = _after(case, case.layer)
        changed = [name for name, value in settings().items() if value != before[name]]
    finally:
        restore(before)
    if changed:
        raise Failed(
            f"a call changes {changed[0]}", "layer(*inputs); print(torch.get_default_dtype(), torch.get_num_threads())"
        )
    torch.manual_seed(0)
    untouched = torch.random.get_rng_state()
    theirs = _after(case, case.reference)
    if torch.equal(theirs, untouched) and not torch.equal(ours, untouched):
        raise Failed(
            "it draws random numbers, the reference does not: whatever is drawn after it differs",
            "s = torch.random.get_rng_state(); layer(*inputs); print(torch.equal(s, torch.random.get_rng_state()))",
        )
    return "settings and random numbers as they were"


def _after(case: Case, function: Any) -> torch.Tensor:
    outputs(function, case.leaves())
    return torch.random.get_rng_state()


def settings() -> dict[str, Any]:
    """What a call of a layer must not change for the whole process."""
    return {
        "the default dtype": torch.get_default_dtype(),
        "the number of threads": torch.get_num_threads(),
        "the grad mode": torch.is_grad_enabled(),
    }


def restore(before: dict[str, Any]) -> None:
    torch.set_default_dtype(before["the default dtype"])
    if torch.get_num_threads() != before["the number of threads"]:
        torch.set_num_threads(before["the number of threads"])
    torch.set_grad_enabled(before["the grad mode"])
