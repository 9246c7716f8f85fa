"""A traced step in the cell of a notebook: the page, or its text where a page cannot be shown."""

from html import escape

from manualgrad.explain.page.write_page import page_of
from manualgrad.explain.terminal import plain
from manualgrad.explain.traced_step import TracedStep
from manualgrad.extras import MissingExtraError


HEIGHT = 780  # pixels


def in_cell(trace: TracedStep) -> str:
    """HTML for a notebook. The page stands in a frame of its own, so that several do not disturb one another.

    Where scripts are not trusted, notebooks remove the frame: then the text after it shows.
    """
    text = f"<pre>{escape(plain(trace, 100))}</pre>"
    try:
        page = page_of([trace])
    except (MissingExtraError, ValueError, TypeError):  # without Jinja2, of an empty batch, of complex numbers
        return text
    return (
        "<style>.manualgrad-page + pre { display: none; }</style>"
        '<iframe class="manualgrad-page" title="One training step, explained" sandbox="allow-scripts allow-modals" '
        f'style="width: 100%; height: {HEIGHT}px; border: 0;" srcdoc="{escape(page)}"></iframe>{text}'
    )
