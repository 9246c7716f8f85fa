"""`manualgrad explain`: one or several training steps with every number, in the terminal, as a plot or as a page."""

import argparse
import math
import os
import shutil
import sys
import tempfile
import textwrap
import webbrowser
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from manualgrad.cli.few_digits import SIDE, few_digits
from manualgrad.explain.terminal import images_as_text
from manualgrad.extras import require
from manualgrad.layers.mlp import MLP
from manualgrad.losses.cross_entropy import SoftmaxCrossEntropyLoss
from manualgrad.losses.loss import Loss
from manualgrad.losses.names import LOSSES
from manualgrad.optim.gradient_descent import GradientDescent
from manualgrad.tracing.trace import Trace, trace


OF_A_FRESH_NET = {"layer_sizes": [9, 3, 1], "activation": "sigmoid", "loss": "quadratic"}


def main(arguments: Sequence[str]) -> None:
    """Train for a few steps on a few digits, and show what happens in them."""
    options = _parser().parse_args(arguments)
    try:
        _check(options)
        traces = _traces(options)
        if options.plot is not None:
            traces[-1].plot().savefig(options.plot, dpi=110)
        if options.out is not None:
            from manualgrad.explain.page.write_page import write_page

            write_page(traces, options.out, about=_about(traces[0]), image_shape=_image_shape(traces[0]))
    except (ValueError, TypeError, OSError) as error:
        raise SystemExit(str(error)) from None
    if options.out is None:
        _print(traces)
    for written in filter(None, (options.plot, options.out)):
        print(f"Written: {written}")
    if options.open and not webbrowser.open(options.out.resolve().as_uri()):
        raise SystemExit(f"Found no browser to open the page with. Open {options.out} yourself.")


def _parser() -> argparse.ArgumentParser:
    about = "Show one training step, or several, with every number."
    parser = argparse.ArgumentParser(prog="manualgrad explain", description=about)
    add = parser.add_argument
    add("--layer-sizes", type=int, nargs="+", help="pixels, neurons of each hidden layer, digits; default: 9 3 1")
    add("--activation", help="of the hidden layers; default: sigmoid")
    add("--loss", choices=LOSSES, help="default: quadratic, on sigmoid outputs")
    add("--checkpoint", type=Path, help="the net that manualgrad fit has written there, instead of a fresh one")
    add("--lr", type=float, help="eta of plain gradient descent; default: 10 for quadratic loss on sigmoids, else 1")
    add("--examples", type=int, default=6, help="images in the batch, the same in every step; default: 6")
    add("--steps", type=int, default=1, help="training steps to record; a page shows them all")
    add("--seed", type=int, default=0, help="of a fresh net's weights")
    add("--out", type=Path, help="write a page (HTML) there, instead of printing")
    add("--plot", type=Path, help="draw the last step there (PNG, SVG, PDF)")
    add("--open", action="store_true", help="show the page in a browser; without --out it is a temporary file")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuse what is known to fail before anything is computed, and fill in the defaults that depend on one another."""
    if options.steps < 1:
        raise ValueError(f"Expected --steps to be at least 1, got {options.steps}. Pass for example --steps 10.")
    if not -(2**63) <= options.seed < 2**64:  # what torch.manual_seed takes
        raise ValueError(f"Expected --seed to fit 64 bits, got {options.seed}. Pass for example --seed 0.")
    _fill_in_net(options)
    if options.open and options.out is None:
        options.out = Path(tempfile.mkdtemp(prefix="manualgrad_")) / "explain.html"
    _check_files(options.out, options.plot)
    needed = {"--out": "jinja2", "--plot": "matplotlib", "--checkpoint": "lightning"}
    for option, package in needed.items():
        if getattr(options, option[2:]) is not None:
            require(package, extra="demo", purpose=f"manualgrad explain {option}")
    if options.plot is not None:
        from matplotlib.backend_bases import FigureCanvasBase

        if options.plot.suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
            raise ValueError(
                f"Expected --plot to end in a format that matplotlib writes, such as .png, .svg or .pdf, got {options.plot}."
            )


def _fill_in_net(options: argparse.Namespace) -> None:
    """The options of a fresh net, which a checkpoint excludes, and the learning rate."""
    given = [f"--{name.replace('_', '-')}" for name in OF_A_FRESH_NET if getattr(options, name) is not None]
    if options.checkpoint is not None and given:
        both = " and ".join(given)
        raise ValueError(
            f"Expected either --checkpoint or {both}, got both. The checkpoint says what its net is: leave {both} out."
        )
    for name, default in OF_A_FRESH_NET.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    if options.lr is None:
        on_sigmoids = (options.activation, options.loss) == ("sigmoid", "quadratic") and options.checkpoint is None
        options.lr = 10.0 if on_sigmoids else 1.0  # sigma' <= 1/4 in each layer: with eta = 1 the cost hardly moves


def _check_files(out: Path | None, plot: Path | None) -> None:
    for name, file in (("--out", out), ("--plot", plot)):
        if file is not None and not os.path.isdir(file.absolute().parent):
            raise ValueError(
                f"Expected {name} to be a file in a folder that exists, got {file}. Make {file.parent} first."
            )
        if file is not None and os.path.isdir(file):
            raise ValueError(f"Expected {name} to be a file, got {file}, which is a folder. Name a file in it.")
    if out is not None and plot is not None and out.resolve() == plot.resolve():
        raise ValueError(f"Expected --out and --plot to be two files, got {out} for both. Rename one of them.")


def _traces(options: argparse.Namespace) -> list[Trace]:
    """A trace of each step."""
    model, loss = _net(options)
    inputs, targets = _batch(model.sizes, loss, options.examples)
    optimizer = GradientDescent(model.parameters(), lr=options.lr, factored=False)  # w - eta dC/dw, as it is shown
    traces = []
    for _ in range(options.steps):
        traces.append(trace(model, loss, inputs, targets, optimizer))
        optimizer.zero_grad()
        loss(model(inputs), targets).backward()
        optimizer.step()
    return traces


def _net(options: argparse.Namespace) -> tuple[MLP, Loss]:
    """That in the checkpoint, or a fresh one."""
    if options.checkpoint is not None:
        from manualgrad.cli.checkpoint import load_backprop_module

        module = load_backprop_module(options.checkpoint)
        return module.model, module.loss
    torch.manual_seed(options.seed)
    output_activation = "sigmoid" if options.loss == "quadratic" else None
    return MLP(options.layer_sizes, options.activation, output_activation), LOSSES[options.loss]()


def _batch(sizes: Sequence[int], loss: Loss, examples: int) -> tuple[Tensor, Tensor]:
    """Images (examples, sizes[0]), and what the loss compares the outputs with: their classes, or one-hot rows."""
    features = sizes[-1]
    inputs, digits = few_digits(sizes[0], max(2, features), examples)
    if isinstance(loss, SoftmaxCrossEntropyLoss):
        if features == 1:
            raise ValueError(
                "Expected at least two features out for the cross-entropy, got 1. Make the last layer size 2 or more."
            )
        return inputs, digits
    targets = digits.unsqueeze(1) if features == 1 else F.one_hot(digits, features)
    return inputs, targets.to(inputs.dtype)


def _image_shape(step: Trace) -> tuple[int, int]:
    side = math.isqrt(step.inputs.size(1))
    return side, side


def _about(step: Trace) -> str:
    (count, pixels), classes = step.inputs.shape, max(2, step.outputs.size(1))
    side = math.isqrt(pixels)
    averaged = "" if side == SIDE else f" averaged to {side} x {side}"
    digits = f"{count} images of the handwritten digits 0 to {classes - 1} from scikit-learn"
    return f"The data: {digits}, {SIDE} x {SIDE} pixels{averaged}."


def _print(traces: list[Trace]) -> None:
    """The data and the last step; if there are several steps, the cost in each of them first."""
    first, width = traces[0], shutil.get_terminal_size().columns
    if len(traces) > 1:
        costs = f"C in {len(traces)} steps: {', '.join(f'{t.loss.item():.4g}' for t in traces)}."
        print(f"{textwrap.fill(costs, width)}\nThe last of them:\n")
    images, digits = few_digits(first.inputs.size(1), max(2, first.outputs.size(1)), first.inputs.size(0))
    print(f"{textwrap.fill(_about(first), width)}\n")
    print(f"{images_as_text(images.unflatten(1, _image_shape(first)), [str(digit) for digit in digits.tolist()])}\n")
    if sys.stdout.isatty() and find_spec("rich") is not None:
        from rich.console import Console

        Console().print(traces[-1])
    else:
        print(traces[-1])
