import unicodedata

import pytest

from manualgrad.explain.printable import LONGEST, printable


@pytest.mark.parametrize("name", ["", "0.weight", "encoder.layer-1", "größe δ", "層", "two words", "x" * LONGEST])
def test_an_ordinary_name_is_itself(name: str) -> None:
    assert printable(name) == name


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("good\rbad", r"good\rbad"),
        ("one\ntwo\tthree", r"one\ntwo\tthree"),
        ("abc\u202ecba", r"abc\u202ecba"),
        ("\u2066x\u2069\u200b\ufeff", r"\u2066x\u2069\u200b\ufeff"),
        ("line\u2028break", r"line\u2028break"),
        ("half a pair \ud800", r"half a pair \ud800"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_a_terminal_would_act_on_is_escaped(name: str, printed: str) -> None:
    assert printable(name) == printed


def test_of_a_long_name_the_middle_is_left_out() -> None:
    name = "first." + "x" * 4000 + ".last"
    assert printable(name) == "first." + "x" * 42 + "..." + "x" * 44 + ".last"
    assert len(printable(name)) == LONGEST and len(printable("\x1b" * 50)) == LONGEST
    assert printable("x" * 12, longest=10) == "xxx...xxxx"


def test_no_character_of_unicode_gets_through() -> None:
    for code in range(0x110000):
        printed = printable(chr(code))
        assert printed.isprintable() and "\n" not in printed
        assert printed == chr(code) or unicodedata.category(chr(code))[0] in "CZ"
        printed.encode("utf-8")
