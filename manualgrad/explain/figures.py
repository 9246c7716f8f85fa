"""Matplotlib figures of the package: their colours, and how they are shown in notebooks and scripts."""

from typing import Any


# Okabe and Ito's colours, which people with common kinds of colour blindness can tell apart; markers make the same difference.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = "osD^vPX"
DIVERGING = "BrBG"  # from brown (negative) over white (zero) to blue-green (positive)


def new_figure(width: float, height: float) -> Any:
    """An empty figure of this size in inches, which `plt.show()` shows in a script, and a notebook shows once.

    Like every figure of pyplot it stays open until `plt.close`."""
    from matplotlib import pyplot

    from manualgrad.explain.shown_once import FigureShownOnce

    return pyplot.figure(figsize=(width, height), layout="constrained", FigureClass=FigureShownOnce)
