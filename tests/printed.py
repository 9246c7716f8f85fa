"""Compare what a program printed with what its documentation says that it prints, honestly across machines.

Text must be equal, spacing aside. Numbers may differ as the last digits of long float32 sums do between processors:

- one with an exponent (5.2e-07) is a rounding error, and noise by nature: it must stay below the documented tolerance of
  float32 comparisons, 1e-5, or within a factor of 2 of what is documented if that is larger;
- one with decimals (97.3, 0.1180) may differ by 3 % or by 2 in its last printed digit, whichever is more;
- a whole number (297) must be equal, except as part of a shape or word, where it is text.

A line "..." stands for any lines.
"""

import re


NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\w)")


def assert_printed(output: str, expected: str) -> None:
    """Raises AssertionError, showing both, unless `output` is `expected` in the sense above."""
    pattern = [line.split() for line in expected.strip().splitlines() if line.strip()]
    lines = [line.split() for line in output.strip().splitlines() if line.strip()]
    assert _matches(lines, pattern), f"Printed:\n{output}\nDocumented:\n{expected}"


def _matches(lines: list[list[str]], pattern: list[list[str]]) -> bool:
    if not pattern:
        return not lines
    if pattern[0] == ["..."]:
        return any(_matches(lines[i:], pattern[1:]) for i in range(len(lines) + 1))
    return bool(lines) and _same_line(lines[0], pattern[0]) and _matches(lines[1:], pattern[1:])


def _same_line(words: list[str], expected: list[str]) -> bool:
    came, wanted = " ".join(words), " ".join(expected)
    if all(set(line) <= {"-"} for line in (came, wanted)):
        return bool(came) and bool(wanted)  # a rule under a heading: as wide as its table
    numbers = zip(NUMBER.findall(came), NUMBER.findall(wanted), strict=False)
    return NUMBER.sub("#", came) == NUMBER.sub("#", wanted) and all(_close(x, y) for x, y in numbers)


def _close(came: str, wanted: str) -> bool:
    difference, size = abs(float(came) - float(wanted)), abs(float(wanted))
    if "e" in wanted:
        return abs(float(came)) <= max(1e-5, 2 * size)
    if "." in wanted:
        last_digit = 10.0 ** -len(wanted.partition(".")[2])
        return difference <= max(0.03 * size, 2.001 * last_digit)
    return came == wanted
