"""What the monitor observed in a layer in one step, and whether the layer is healthy."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from lightning.pytorch.strategies import Strategy

from manualgrad.lightning.monitor.layer_probe import LayerProbe


class LayerRecord(NamedTuple):
    """One layer in one optimizer step. None: not observed in that step, or not defined for that layer.

    With mean losses, delta and the gradient are those of the mean over the batch: over all micro-batches of the step and
    all processes.
    """

    step: int  # optimizer steps taken before this one
    layer: str  # its name in the module
    delta_norm: float | None  # |delta|, delta = dC/dz (r, m)
    grad_norm: float | None  # |dC/dw|, before clipping; None if the weight is frozen
    update_ratio: float | None  # |w_after - w_before| / |w_before|
    saturated: float | None  # fraction of the entries of sigma'(z) (r, m) that are near 0
    dead: float | None  # fraction of the m units whose sigma'(z) is 0 for the whole batch, relu-like activations only


QUANTITIES = LayerRecord._fields[2:]


def read(probes: Sequence[LayerProbe], strategy: Strategy, processes: int, step: int) -> list[LayerRecord]:
    """A record of each layer that ran, in the order in which they ran, averaged over the processes.

    One reduction for all numbers; every process contributes the same count, whichever layers it has run.
    """
    quantities = [quantity for probe in probes for quantity in probe.quantities()]
    device = strategy.root_device
    zero = torch.zeros((), device=device, dtype=torch.float64 if device.type != "mps" else None)
    seen = torch.tensor([quantity is not None for quantity in quantities]).to(zero)
    numbers = torch.stack([zero if quantity is None else quantity.to(zero) for quantity in quantities])
    means, everywhere = strategy.reduce(torch.stack([numbers, seen]), reduce_op="mean").tolist()
    known = [mean if part == 1 else None for mean, part in zip(means, everywhere, strict=True)]
    records = []
    for i, probe in sorted(enumerate(probes), key=lambda pair: pair[1].first_call or 0):
        of_layer = known[i * len(QUANTITIES) : (i + 1) * len(QUANTITIES)]
        if all(quantity is None for quantity in of_layer):  # it was not used
            continue
        squared, norm, ratio, saturated, dead = of_layer
        delta_norm = None if squared is None else math.sqrt(squared / processes)  # rows of a batch so many times larger
        ratio = None if ratio is None or math.isnan(ratio) else ratio  # the weights were 0
        records.append(LayerRecord(step, probe.name, delta_norm, norm, ratio, saturated, dead))
    return records


def symptoms(
    records: Sequence[LayerRecord], vanishing_below: float, exploding_above: float
) -> dict[tuple[str, str], tuple[str, bool]]:
    """(layer, "vanishing" or "exploding") -> the reason, and whether one sample is enough to be certain.

    `records` are those of one step, in the order in which the layers ran. |delta| is compared with that of the last layer,
    since a net that has learnt its data has small errors everywhere.
    """
    found: dict[tuple[str, str], tuple[str, bool]] = {}
    last = next((r.delta_norm for r in reversed(records) if r.delta_norm is not None), None)
    for layer, delta_norm, grad_norm, ratio in (record[1:5] for record in records):
        relative = 1.0  # if no error is known
        if delta_norm is not None and last and math.isfinite(last):
            relative = delta_norm / last
        if relative < vanishing_below:
            found[layer, "vanishing"] = f"|delta| is {relative:.1e} of the last layer's", False
        elif relative > exploding_above:
            found[layer, "exploding"] = f"|delta| is {relative:.1e} times the last layer's", False
        if ratio is not None and ratio > 1:
            found[layer, "exploding"] = f"its update is {ratio:.2g} times as large as its weights", False
        for name, norm in (("|delta|", delta_norm), ("|dC/dw|", grad_norm)):
            if norm is not None and not math.isfinite(norm):
                found[layer, "exploding"] = f"{name} is {norm}", True
    return found
