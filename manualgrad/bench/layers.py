"""Which linear layers of a model keep their gradient as factors in a training step, and why the others do not."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, NamedTuple

from torch import nn

import manualgrad as mg
from manualgrad.bench.case import Task
from manualgrad.factored.choice import SMALLEST_FACTORED_WEIGHT


class Layer(NamedTuple):
    """Linear layers whose names differ in numbers alone, of one shape and with one answer."""

    names: str  # "encoder.*.linear"
    layers: int
    shape: str  # "(out, in)"
    factored: bool
    why: str


def layers_of(task: Task) -> list[Layer]:
    """Takes a backward pass and looks at the gradients: nothing is guessed."""
    rows: dict[nn.Module, int] = {}
    linear = [row.name for row in mg.conversion_report(task.model) if row.kind == "linear"]
    modules = {name: task.model.get_submodule(name) for name in linear if name in dict(task.model.named_modules())}
    hooks = [
        module.register_forward_pre_hook(lambda m, inputs: rows.update({m: inputs[0].numel() // inputs[0].size(-1)}))
        for module in modules.values()
        if isinstance(module, mg.Dense)
    ]
    task.model.zero_grad()
    task.cost().backward()
    for hook in hooks:
        hook.remove()
    left = mg.conversion_report(task.model).left
    counts: Counter[tuple[Any, ...]] = Counter()
    for name, module in modules.items():
        weight = getattr(module, "weight", None)
        shape = tuple(weight.shape) if isinstance(weight, nn.Parameter) else ()
        factored, why = _answer(module, weight, rows.get(module), left.get(name, ""))
        counts[re.sub(r"\d+", "*", name), str(shape), factored, why] += 1
    task.model.zero_grad()
    return [Layer(names, count, *rest) for (names, *rest), count in counts.items()]


def _answer(module: nn.Module, weight: Any, rows: int | None, why_left: str) -> tuple[bool, str]:
    if not isinstance(module, mg.Dense):
        return False, f"not converted: {why_left}"
    gradient, (m, n) = weight.grad, weight.shape
    if isinstance(gradient, mg.FactoredGradient) and not gradient.is_dense:
        bytes_of_one = weight.element_size()
        return True, f"{gradient.rank} rows: {_size(gradient.rank * (m + n) * bytes_of_one)} for {_size(weight.nbytes)}"
    if gradient is None:
        return False, "no gradient: frozen, or not used"
    if weight.numel() < SMALLEST_FACTORED_WEIGHT:
        return False, f"dense: fewer than {SMALLEST_FACTORED_WEIGHT} entries"
    if rows is not None and rows * (m + n) >= m * n:
        return False, f"dense: factors of {rows} rows would be no smaller"
    return False, "dense: the weight has another use (tied), or factors would be slower"


def _size(size: int) -> str:
    return f"{size / 2**20:.3g} MiB" if size >= 2**20 else f"{size / 2**10:.3g} KiB"
