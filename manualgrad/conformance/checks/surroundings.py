"""Checks of what surrounds a layer: grad mode, random numbers, PyTorch's settings."""

from collections.abc import Callable
from typing import Any

import torch

from manualgrad.conformance.case import Case, output_names, outputs
from manualgrad.conformance.diagnosis import expect_equal
from manualgrad.conformance.refusal import of_both
from manualgrad.conformance.result import Failed


def without_gradients(case: Case) -> str:
    """The reference's output under torch.no_grad, where layers often take another path."""
    line = "with torch.no_grad(): print(layer(*inputs), reference(*inputs))"
    with torch.no_grad():
        actual, expected = of_both(lambda f: outputs(f, case.leaves()), case, line, "under no_grad")
    expect_equal(output_names(len(expected), "under no_grad, "), actual, expected, case.exact, line=line)
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


_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "the grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
}


def settings() -> dict[str, Any]:
    """What a call of a layer must not change for the whole process."""
    return {name: ask() for name, (ask, _) in _SETTINGS.items()}


def restore(before: dict[str, Any]) -> None:
    for name, (ask, put_back) in _SETTINGS.items():
        if ask() != before[name]:
            put_back(before[name])
