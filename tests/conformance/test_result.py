"""What a report says, and what it lets a test demand."""

import pytest
import torch

import manualgrad as mg
from manualgrad.conformance.check_backward import CHECKS
from tests.conformance.hand_written import Square, one


class WrongSign(Square):
    @staticmethod
    def backward(ctx, g):
        return -Square.backward(ctx, g)


def test_the_table_shows_each_row_and_how_to_see_a_failure():
    skip = CHECKS.keys() - {"output", "gradient", "copies", "jvp"}
    report = mg.check_backward(WrongSign, torch.square, torch.randn(2), skip=skip)
    lines = str(report).splitlines()
    assert lines == [
        "output    passed          as the reference's",
        "gradient  failed          the gradient by input is -1 times what it should be: the sign is wrong",
        "jvp       not supported   NotImplementedError: You must implement the jvp function for custom autograd.Function t...",
        "copies    not applicable  not a module",
        "",
        "To see 'gradient' fail:",
        "    # layer and reference: what you passed to check_backward",
        "    inputs = [torch.randn((2,), dtype=torch.float32, requires_grad=True)]; "
        "wanted = [*(x for x in inputs if getattr(x, 'requires_grad', False))]",
        "    for f in (layer, reference): print(torch.autograd.grad(f(*inputs).abs().square().sum(), wanted))",
        "",
        "1 passed, 1 failed, 1 not supported, 1 not applicable.",
    ]
    assert not report.ok
    assert [list(rows) for rows in (report.passed, report.failed, report.not_supported)] == [
        ["output"],
        ["gradient"],
        ["jvp"],
    ]


class Misspelt(Square):
    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensor[0]


def test_one_bug_is_told_once():
    skip = CHECKS.keys() - {"output", "gradient", "frozen inputs", "memory leak", "more axes"}
    report = mg.check_backward(Misspelt, torch.square, *one(), skip=skip)
    lines = str(report).splitlines()
    assert lines[:8] == [
        "Mend 'gradient' first: other checks compare with the same numbers.",
        "",
        "output         passed          as the reference's",
        "gradient       failed          AttributeError: 'MisspeltBackward' object has no attribute 'saved_tensor'",
        "frozen inputs  failed          the same error as 'gradient'",
        "more axes      failed          the same error as 'gradient'",
        "memory leak    failed          the same error as 'gradient'",
        "",
    ]
    assert str(report).count("# layer and reference: what you passed to check_backward") == 1
    assert lines[-1] == "1 passed, 4 failed, 0 not supported, 0 not applicable."
    assert report.failed["more axes"].detail == (
        "with one axis more: AttributeError: 'MisspeltBackward' object has no attribute 'saved_tensor'; the reference works. "
        "Support it, or raise an error in forward that says it is not supported."
    )
    with pytest.raises(AssertionError, match=r"^The backward pass failed 4 of 5 checks\.\n"):
        report.assert_ok()


def test_other_errors_are_not_shortened():
    class TwoDimensions(Square):
        @staticmethod
        def backward(ctx, g):
            raise IndexError(f"{g.dim()} axes")

    skip = CHECKS.keys() - {"gradient", "frozen inputs", "more axes"}
    report = mg.check_backward(TwoDimensions, torch.square, *one(), skip=skip)
    assert [line.split("  ")[-1] for line in str(report).splitlines()[2:5]] == [
        "IndexError: 2 axes",
        "the same error as 'gradient'",
        "with one axis more: IndexError: 3 axes; the reference works. "
        "Support it, or raise an error in forward that says it is not supported.",
    ]


def report() -> mg.Conformance:
    return mg.check_backward(Square, torch.square, *one(), skip=CHECKS.keys() - {"gradient", "jvp", "copies", "vmap"})


def test_a_test_may_demand_more():
    lenient = report()
    lenient.assert_ok()
    lenient.assert_ok(require=("gradient", "vmap"))
    with pytest.raises(AssertionError) as error:
        lenient.assert_ok(require=("vmap", "jvp", "copies"))
    sentence = (
        "The backward pass must do more: jvp is not supported (NotImplementedError: You must implement the jvp function for "
        "custom autograd.Function t...); copies is not applicable (not a module)."
    )
    assert str(error.value) == f"{sentence}\n{lenient}"
    with pytest.raises(AssertionError, match=r"^The backward pass must do more: jvp is not supported \([^;]*\)\.\n"):
        lenient.assert_ok(strict=True)


def test_demands_nobody_can_meet():
    with pytest.raises(ValueError) as error:
        report().assert_ok(require=("vmap", "autocast"))
    assert str(error.value) == (
        "assert_ok expected `require` to name checks of this report, got ['autocast']. They are: gradient, vmap, jvp, copies."
    )
