"""The cost over the training steps, as a small plot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from manualgrad.explain.number_format import displayed, typeset


WIDTH, HEIGHT = 320, 96
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 8, 30


@dataclass(frozen=True)
class LossCurve:
    """Points (x, y) for each step, None where the cost is not finite; labels of the axes' ends."""

    points: list[tuple[float, float] | None]
    pieces: list[str]  # "x,y x,y ...": unbroken runs of finite points
    low: str
    high: str
    steps: list[int]  # the number of each training step
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def loss_curve(costs: Sequence[float], steps: Sequence[int]) -> LossCurve:
    """The vertical axis begins at 0, or at the smallest cost if that is negative."""
    finite = [c for c in costs if math.isfinite(c)]
    low, high = min([0.0, *finite]), max(finite, default=0.0)
    points: list[tuple[float, float] | None] = []
    for step, cost in zip(steps, costs, strict=True):
        x = LEFT + (WIDTH - LEFT - RIGHT) * (step - steps[0]) / max(1, steps[-1] - steps[0])
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (0.0 if high == low else (cost - low) / (high - low))
        points.append((round(x, 1), round(y, 1)) if math.isfinite(cost) else None)
    runs = [[f"{p[0]},{p[1]}" for p in run if p] for _, run in groupby(points, key=bool)]
    ends = (typeset(displayed(low)), typeset(displayed(high)))
    return LossCurve(points, [" ".join(run) for run in runs if run], *ends, list(steps))
