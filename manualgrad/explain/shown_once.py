"""A figure that a notebook shows once, whether or not it is the last value of its cell. Imports matplotlib."""

from __future__ import annotations

from io import BytesIO

import matplotlib
from matplotlib import pyplot
from matplotlib.figure import Figure


class FigureShownOnce(Figure):
    def _ipython_display_(self) -> None:
        """At the end of a cell notebooks show the figures that pyplot has open: such a one is not shown here a second time."""
        if pyplot.fignum_exists(self.number) and matplotlib.get_backend().lower() != "agg":
            return
        from IPython.display import Image, display

        picture = BytesIO()
        self.savefig(picture, format="png", bbox_inches="tight")
        display(Image(picture.getvalue()))
