"""Trace.plot(): what is drawn is what the trace holds, and everything drawn is labelled."""

import re
import sys
from pathlib import Path

import numpy
import pytest
import torch
from matplotlib.colors import to_hex
from torch import nn

import manualgrad as mg
from manualgrad.explain.figures import COLOURS, DIVERGING
from manualgrad.extras import MissingExtraError
from tests.xor import xor_net, xor_trace


X, Y = torch.linspace(-1, 1, 24).view(8, 3), torch.linspace(0, 1, 16).view(8, 2)


def deep_trace(depth: int = 9) -> mg.Trace:
    return mg.trace(mg.MLP([3] + [5] * (depth - 1) + [2], "sigmoid"), mg.QuadraticLoss(), X, Y)


def panels(figure):
    """The axes without the colour bars."""
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


@pytest.mark.parametrize("trace", [lambda: xor_trace(xor_net()), deep_trace], ids=["xor", "deep"])
def test_everything_is_labelled(trace, tmp_path: Path) -> None:
    figure = trace().plot()
    figure.savefig(tmp_path / "trace.png")  # no warning on laying it out
    assert figure.get_suptitle().startswith("One training step: QuadraticLoss C = 0.")
    for axes in panels(figure):
        assert axes.get_title()
        assert re.search(r"\((no unit|index)\)|^layer", axes.get_xlabel()) and re.search(
            r"\((no unit|index)\)", axes.get_ylabel()
        )
    bars = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    assert bars and all(bar.get_ylabel() == "value (no unit)" for bar in bars)
    norms, updates = panels(figure)[:2]
    assert [text.get_text() for text in norms.get_legend().get_texts()] == ["error delta", "gradient dC/dw"]
    assert len(updates.get_legend().get_texts()) == len(updates.collections) > 1
    assert {to_hex(line.get_color()).upper() for line in norms.get_lines()} < set(COLOURS)
    assert len({line.get_marker() for line in norms.get_lines()}) == 2  # not by colour alone
    assert all(image.get_cmap().name == DIVERGING for axes in panels(figure) for image in axes.get_images())


def test_norms_updates_and_maps_are_those_of_the_trace() -> None:
    trace = xor_trace(xor_net())
    norms, updates, *maps = panels(trace.plot())
    deltas, gradients = (line.get_ydata() for line in norms.get_lines())
    numpy.testing.assert_allclose(deltas, [layer.delta.norm() for layer in trace.layers], rtol=1e-15)
    numpy.testing.assert_allclose(gradients, [layer.grad_weight.norm() for layer in trace.layers], rtol=1e-15)
    assert norms.get_yscale() == updates.get_yscale() == "log"
    for points, layer in zip(updates.collections, trace.layers, strict=True):
        update = (layer.weight_after - layer.weight_before).abs().flatten()
        numpy.testing.assert_array_equal(
            points.get_offsets(), torch.stack([layer.weight_before.flatten(), update], dim=1)
        )
    shown = [axes.get_images()[0] for axes in maps]
    expected = [x for layer in trace.layers for x in (layer.delta, layer.weight_before, layer.grad_weight)]
    for image, x in zip(shown, expected, strict=True):
        numpy.testing.assert_array_equal(image.get_array(), x)
        assert image.get_clim() == (-x.abs().max(), x.abs().max())  # zero is white


def test_of_a_deep_net_the_first_and_the_last_layers_are_mapped() -> None:
    figure = deep_trace(9).plot()
    titles = [axes.get_title() for axes in panels(figure)]
    assert [title for title in titles if title.startswith("Error delta")] == [
        f"Error delta, layer {i + 1} named '{i}'" for i in (0, 1, 2, 6, 7, 8)
    ]
    assert figure.subfigs[1].get_suptitle() == "The first and the last of 9 layers"
    assert len(panels(figure)[0].get_lines()[0].get_ydata()) == 9  # the norms of all


def test_odd_traces_are_drawn(tmp_path: Path) -> None:
    frozen = mg.MLP([3, 4, 2]).requires_grad_(False)
    strange = nn.Sequential()
    strange.add_module("$x_$", mg.Dense(3, 2))  # to matplotlib the beginning of a formula
    for model, inputs in ((frozen, X), (frozen, X / 0), (strange, X), (mg.Dense(3, 2), X[0])):
        targets = torch.zeros(*inputs.shape[:-1], 2)
        mg.trace(model, nn.MSELoss(), inputs, targets).plot().savefig(tmp_path / "trace.png")


def test_complex_numbers_are_refused() -> None:
    model = mg.MLP([3, 2], dtype=torch.complex64)
    trace = mg.trace(model, lambda a, y: a.abs().mean(), X.to(torch.complex64), Y)
    message = (
        "Trace.plot() expected real numbers, got a trace with complex ones. Plot parts of it: trace.layers[0].z.abs()."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        trace.plot()


def test_without_matplotlib_the_pip_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # how Python marks a module that cannot be imported
    message = (
        "Trace.plot() expected the package `matplotlib`, which is not installed. "
        'Install it with: python -m pip install "manualgrad[demo]", '
        'or in a clone: python -m pip install -c constraints.txt -e ".[demo]"'
    )
    with pytest.raises(MissingExtraError, match=f"^{re.escape(message)}$"):
        deep_trace(2).plot()
