"""Numbers as text, and where they lie on the colour scale."""

import math

import pytest

from manualgrad.explain.number_format import brief, displayed, intensity, typeset


@pytest.mark.parametrize(
    ("x", "text", "seen", "short"),
    [
        (0.0, "0", "0", "0"),
        (-0.0, "0", "0", "0"),
        (1.0, "1", "1", "1"),
        (0.57444, "0.5744", "0.5744", "0.574"),
        (-0.0004318, "-0.0004318", "−0.0004318", "−4.3e−4"),
        (0.0099996, "0.01", "0.01", "0.01"),
        (-1.2342e-7, "-1.234e-07", "−1.234e−7", "−1.2e−7"),
        (-1.125, "-1.125", "−1.125", "−1.13"),
        (123456.0, "1.235e+05", "1.235e5", "1.2e5"),
        (1234.0, "1234", "1234", "1.2e3"),
        (math.nan, "nan", "NaN", "NaN"),
        (math.inf, "inf", "∞", "∞"),
        (-math.inf, "-inf", "−∞", "−∞"),
    ],
)
def test_text(x: float, text: str, seen: str, short: str) -> None:
    assert (displayed(x), typeset(text), brief(text)) == (text, seen, short)


def test_the_colour_scale() -> None:
    assert [intensity(x, 4.0) for x in (-4.0, -1.0, 0.0, 1.0, 4.0, 9.0)] == [-1.0, -0.5, 0.0, 0.5, 1.0, 1.0]
    assert intensity(math.nan, 4.0) is None
    assert (intensity(math.inf, 4.0), intensity(-math.inf, 4.0)) == (1.0, -1.0)
    assert intensity(0.0, 0.0) == 0.0
