"""A figure that a notebook shows once, whether or not it is the last value of its cell. Imports matplotlib."""

from io import BytesIO

import matplotlib
from matplotlib import pyplot
from matplotlib.figure import Figure


class FigureShownOnce(Figure):
    def _ipython_display_(self) -> None:
        """Show the picture and close it in pyplot, which would otherwise show it again at the end of the cell."""
        backend = matplotlib.get_backend().lower()
        if backend != "agg" and not backend.endswith("inline"):
            return  # a window or a widget, which is already there
        from IPython.display import Image, display

        picture = BytesIO()
        self.savefig(picture, format="png", bbox_inches="tight")
        pyplot.close(self)
        display(Image(picture.getvalue()))
