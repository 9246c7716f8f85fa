import re

import pytest
import torch

from manualgrad.cli.few_digits import few_digits


def test_the_images_are_scikit_learn_s_in_turn() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, digits = datasets.load_digits(return_X_y=True)
    inputs, labels = few_digits(64, 10, 20)
    assert labels.tolist() == [*range(10)] * 2
    for digit in range(10):
        first, second = (pixels[digits == digit] / 16)[:2]
        torch.testing.assert_close(inputs[digit], torch.tensor(first, dtype=torch.float32))
        torch.testing.assert_close(inputs[10 + digit], torch.tensor(second, dtype=torch.float32))


def test_fewer_pixels_are_means_of_neighbours() -> None:
    whole, labels = few_digits(64, 2, 4)
    reduced, same_labels = few_digits(16, 2, 4)
    assert labels.tolist() == same_labels.tolist() == [0, 1, 0, 1]
    blocks = whole.view(4, 4, 2, 4, 2).mean((2, 4)).flatten(1)
    torch.testing.assert_close(reduced, blocks)
    assert few_digits(9, 3, 5)[0].shape == (5, 9) and few_digits(1, 2, 1)[0].shape == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (10, 2, 4),
            "Expected the net to take a square of pixels, 1, 4, 9, ... or 64, got 10 features in. "
            "Make the first layer size one of these, for example 9.",
        ),
        (
            (81, 2, 4),
            "Expected the net to take a square of pixels, 1, 4, 9, ... or 64, got 81 features in. "
            "Make the first layer size one of these, for example 9.",
        ),
        (
            (9, 11, 4),
            "Expected the net to tell 2 to 10 digits apart, got 11 features out. "
            "Make the last layer size 1 (for 0 and 1) to 10.",
        ),
        ((9, 2, 0), "Expected from 1 to 356 examples of 2 digits, got 0. Ask for as many as there are."),
        ((9, 2, 357), "Expected from 1 to 356 examples of 2 digits, got 357. Ask for as many as there are."),
    ],
)
def test_what_cannot_be_had(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        few_digits(*arguments)
