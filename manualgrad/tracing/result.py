"""What `mg.trace` returns: a traced step that can show itself."""

from collections.abc import Iterator
from os import PathLike
from typing import Any

from manualgrad.explain.page.notebook import in_cell
from manualgrad.explain.page.write_page import write_page
from manualgrad.explain.plots import plot
from manualgrad.explain.terminal import coloured, plain
from manualgrad.explain.traced_step import TracedStep


class Trace(TracedStep):
    """One training step as it would have been: `print` shows its four steps, `plot` draws them, `to_html` writes a page.

    The loss C is the mean over the batch if the loss function says so; so are all its gradients.
    """

    def __str__(self) -> str:
        return plain(self)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        return coloured(self, width=options.max_width)

    def _repr_html_(self) -> str:
        return in_cell(self)

    def plot(self) -> Any:
        """A matplotlib figure: norms by layer, updates against weights, and heat maps of delta, w and dC/dw.

        Raises:
            MissingExtraError: the `demo` extra is not installed.
            TypeError: complex numbers, which have no place on its axes.
        """
        return plot(self)

    def to_html(self, path: str | PathLike[str], *, title: str | None = None) -> None:
        """Write one self-contained page that shows the step.

        Raises:
            MissingExtraError: the `demo` extra is not installed.
            TypeError: complex numbers, which the page cannot draw.
            ValueError: the batch is empty.
            FileNotFoundError: there is no folder for `path`.
        """
        write_page([self], path, title=title, caller="Trace.to_html()")
