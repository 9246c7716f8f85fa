"""Large arrays made small: block means, evenly spaced neurons, and what is said about them."""

import pytest
import torch

from manualgrad.explain.page.thinning import Axis, drawn_axis, how_shown, whole_axis


@pytest.mark.parametrize("size", [33, 64, 100, 784])
def test_block_means_are_means_of_neighbours(size: int) -> None:
    x = torch.randn(3, size, dtype=torch.float64)
    axis = Axis(size)
    bounds = [tuple(map(int, label.split("–"))) for label in axis.labels]
    expected = [x[:, bound[0] - 1 : bound[-1]].mean(1) for bound in bounds]
    assert torch.equal(axis.shown(x, 1), torch.stack(expected, 1))
    assert sorted(i for bound in bounds for i in range(bound[0], bound[-1] + 1)) == list(range(1, size + 1))
    assert axis.count == 32 and not axis.is_whole


def test_a_nan_is_not_averaged_away() -> None:
    x = torch.zeros(1, 64)
    x[0, 5] = float("nan")
    assert Axis(64).shown(x, 1).isnan().sum() == 1


def test_small_axes_are_whole() -> None:
    x = torch.randn(2, 32)
    assert Axis(32).shown(x, 1) is x
    assert whole_axis(64).count == 64 and whole_axis(64).is_whole
    assert drawn_axis(10) == Axis(10) and drawn_axis(10).labels == [str(i) for i in range(1, 11)]


def test_drawn_neurons_are_evenly_spaced_and_real() -> None:
    axis = drawn_axis(512)
    assert axis.labels == ["33", "97", "161", "225", "289", "353", "417", "481"]
    x = torch.randn(2, 512)
    assert torch.equal(axis.shown(x, 1), x[:, 32::64])


def test_what_is_said() -> None:
    assert how_shown(Axis(512), Axis(784)) == "shown as 32 × 32 block means of 512 × 784"
    assert how_shown(Axis(512), Axis(1)) == "shown as 32 block means of 512"
    assert how_shown(Axis(10), Axis(784)) == "shown as 10 × 32 block means of 10 × 784"
    assert how_shown(Axis(3), Axis(2)) is None
