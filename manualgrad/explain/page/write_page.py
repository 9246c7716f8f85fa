"""Traces as a page: one HTML file that explains a training step, or a run of them, and needs nothing else.

Python says what is on the page; `templates/` says how it looks. Markup is written by the templates alone, with everything
escaped, and the page forbids itself any script but its own and any connection at all (its Content-Security-Policy), so a layer
called `<script>` is a name and no more.
"""

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from manualgrad.explain.loss_formulas import formula_of
from manualgrad.explain.page.loss_curve import loss_curve
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.script_data import page_data
from manualgrad.explain.page.sections.all_sections import sections_of
from manualgrad.explain.traced_step import TracedStep, as_rows
from manualgrad.extras import require


MOST_SIZES = 12  # of layers named in the summary
MOST_PRINTED = 30  # sections; of more the open one is printed


def write_page(
    traces: Sequence[TracedStep], path: str | os.PathLike[str], *, caller: str = "write_page", **options: Any
) -> None:
    """Write the page to `path`. Options, and what it raises, as for `page_of`; besides FileNotFoundError: there is no folder for
    `path`."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{caller} expected `path` in a folder that exists, got {str(path)!r}, and there is no folder {str(path.parent)!r}. "
            "Make the folder first, or name another file."
        )
    page = page_of(traces, caller=caller, **options)
    path.write_text(page, encoding="utf-8", errors="xmlcharrefreplace", newline="\n")


def page_of(
    traces: Sequence[TracedStep],
    *,
    title: str | None = None,
    steps: Sequence[int] | None = None,
    about: str | None = None,
    image_shape: tuple[int, int] | None = None,
    caller: str = "write_page",
) -> str:
    """The page as text. Several traces are training steps of one model, and get a slider.

    Args:
        steps: the number of each trace's training step, rising; by default 1, 2, 3, ...
        about: a sentence on the data.
        image_shape: (height, width), if each example is an image: it is shown beside the numbers. Inputs of shape
            (r, height, width) or (r, 1, height, width) are taken for images as they are.
        caller: whose name stands in what is refused.

    Raises:
        MissingExtraError: Jinja2 is not installed.
        ValueError: there is no trace, they are not of one model, a batch is empty, or `steps` does not fit.
        TypeError: complex numbers, which the page cannot draw.
    """
    require("jinja2", extra="demo", purpose="The page")
    steps = range(1, len(traces) + 1) if steps is None else steps
    _check(traces, steps, caller)
    formula = formula_of(traces)
    q = Quantities(traces, formula.prediction if formula and formula.function else None)
    curve = loss_curve([trace.loss.double().item() for trace in traces], steps)
    inputs = traces[0].inputs
    if image_shape is None and (inputs.dim() == 3 or inputs.dim() == 4 and inputs.size(1) == 1):
        image_shape = inputs.size(-2), inputs.size(-1)
    sections = sections_of(traces, q, formula, image_shape)
    return _render(
        title=title or ("One training step, explained" if len(traces) == 1 else "A training run, explained"),
        summary=" ".join(filter(None, (_summary(traces), about))),
        sections=sections,
        phases=[list(phase) for _, phase in groupby(sections, key=lambda section: section.phase)],
        prints_all=q.is_small and len(sections) <= MOST_PRINTED,
        count=len(traces),
        curve=curve,
        q=q,
        data=page_data(traces, q, formula, curve),
    )


def _render(**content: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("manualgrad.explain.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda x: f"{x:g}" if isinstance(x, float) else x,
    )
    script = _without_indents(environment.get_template("page.js").render())
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.get_template("page.html")
    return _without_indents(template.render(script=Markup(script), script_hash=f"sha256-{digest}", **content))


def _without_indents(text: str) -> str:
    """And without comments on lines of their own: smaller, and the same to a browser."""
    return re.sub(r"\n\s*(?:// .*\n\s*)*", "\n", text)


def _summary(traces: Sequence[TracedStep]) -> str:
    layers = traces[0].layers
    widths = [str(size) for size in (layers[0].inputs.size(-1), *(layer.a.size(-1) for layer in layers))]
    sizes = " → ".join(
        widths if len(widths) <= MOST_SIZES else [*widths[:4], f"… ({len(layers)} layers)", *widths[-2:]]
    )
    batches = sorted({as_rows(trace.layers[-1].a).size(0) for trace in traces})
    count = str(batches[-1]) if len(batches) == 1 else f"{batches[0]} to {batches[-1]}"
    examples = "1 example" if count == "1" else f"a batch of {count} examples"
    steps = "" if len(traces) == 1 else f"{len(traces)} training steps. "
    return f"{steps}Layers {sizes}, {examples}, {traces[0].loss_name}, {traces[0].optimizer}."


def _check(traces: Sequence[TracedStep], steps: Sequence[int], caller: str) -> None:
    if not traces:
        raise ValueError(f"{caller} expected at least one trace, got none. Make one with manualgrad.trace(...).")
    if len(steps) != len(traces) or any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError(
            f"{caller} expected `steps` to be {len(traces)} rising numbers, one for each trace, got {list(steps)}. "
            "Leave it out to number them 1, 2, 3, ..."
        )
    shapes = [[(layer.name, tuple(layer.weight_before.shape)) for layer in trace.layers] for trace in traces]
    for number, other in enumerate(shapes):
        if other != shapes[0]:
            raise ValueError(
                f"{caller} expected traces of one model, got layers {shapes[0]} in the first and {other} in number {number + 1}. "
                "Write a page for each model."
            )
    for trace in traces:
        for layer in trace.layers:
            if layer.z.is_complex():
                raise TypeError(
                    f"{caller} expected real numbers, got {layer.z.dtype} in layer {layer.name!r}. "
                    "Trace the real or the imaginary part."
                )
            if layer.z.numel() == 0:
                raise ValueError(
                    f"{caller} expected at least one example, got z of shape {tuple(layer.z.shape)} in layer {layer.name!r}. "
                    "Trace a step on a batch that is not empty."
                )
