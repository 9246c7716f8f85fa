import pytest

from tests.printed import assert_printed


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("loss 0.1182  accuracy 97.3%", "loss  0.1180 accuracy 97.0%"),
        ("loss 1.00", "loss 1.02"),
        ("tensor([[0.30, -0.2]])", "tensor([[0.31, -0.2]])"),
        ("error 3.1e-07 yes", "error 0.0e+00 yes"),
        ("error 1.9e-02 yes", "error 1.0e-02 yes"),
        ("a\n----\nb", "a\n------\n\nb"),
        ("a\nb\nc\nd", "a\n...\nd"),
        ("a\nd", "a\n...\nd"),
        ("weight 10x64 in /tmp/x1", "weight 10x64 in /tmp/x1"),
    ],
)
def test_same_within_the_stated_tolerances(output: str, expected: str) -> None:
    assert_printed(output, expected)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("loss 0.1280", "loss 0.1180"),
        ("loss 1.10", "loss 1.02"),
        ("loss -0.1180", "loss 0.1180"),
        ("loss 0.1180", "cost 0.1180"),
        ("3 rows ok", "4 rows ok"),
        ("weight 10x64", "weight 10x65"),
        ("error 1.1e-05", "error 0.0e+00"),
        ("error nan", "error 0.0e+00"),
        ("loss nan", "loss 0.1180"),
        ("a\nb\nextra", "a\nb"),
        ("a", "a\nb"),
        ("a\nb\nc", "a\n...\nd"),
        ("", "a"),
    ],
)
def test_anything_else_differs(output: str, expected: str) -> None:
    with pytest.raises(AssertionError, match="Printed:"):
        assert_printed(output, expected)
