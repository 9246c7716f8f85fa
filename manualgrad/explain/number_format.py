"""Numbers as the page shows them: four significant digits, in text that JavaScript reads back."""

import math
from decimal import ROUND_HALF_UP, Context


DIGITS = 4


def displayed(x: float) -> str:
    """`x` to four significant digits: "0.5744", "-12.3", "1.234e-05", "nan", "-inf". JavaScript's `Number` reads all but inf."""
    if x == 0:
        return "0"  # and not "-0"
    return f"{x:.{DIGITS}g}"


def typeset(number: str) -> str:
    """The same for the eye: a true minus sign, NaN and infinity as they are written, no leading zeros in the exponent."""
    if "n" in number:
        return {"nan": "NaN", "inf": "∞", "-inf": "−∞"}[number]
    mantissa, e, exponent = number.partition("e")
    return f"{mantissa}{e}{int(exponent)}".replace("-", "−") if e else number.replace("-", "−")


def brief(number: str) -> str:
    """The same where there is little room, as in a circle: three significant digits, or two and an exponent."""
    x = float(number)
    if "n" in number or x == 0:
        return typeset(number)
    rounded = _rounded(x, 3)
    return typeset(f"{rounded:.3g}" if 0.01 <= abs(rounded) < 1000 else f"{_rounded(x, 2):.1e}")


def _rounded(x: float, digits: int) -> float:
    """To significant digits, halves away from zero: as JavaScript's `toPrecision`, where Python's formats go to the even digit."""
    return float(Context(prec=digits, rounding=ROUND_HALF_UP).create_decimal_from_float(x))


def intensity(x: float, scale: float) -> float | None:
    """Where `x` lies on the colour scale: -1 to 1, with 0 for 0. None for NaN.

    It is the square root of |x| / scale, with x's sign: small numbers beside a large one keep a colour that can be seen."""
    if math.isnan(x):
        return None
    if math.isinf(x):
        return math.copysign(1.0, x)
    return 0.0 if scale == 0 else round(math.copysign(math.sqrt(min(1.0, abs(x) / scale)), x), 3)
