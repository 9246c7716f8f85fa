"""What a report says, and what it lets a test demand."""

import pytest
import torch
from torch.nn import functional as F

import manualgrad as mg
from manualgrad.conformance.check_backward import CHECKS
from manualgrad.conformance.result import CURES
from tests.conformance.hand_written import Linear, Square, one, rectangular


class WrongSign(Square):
    @staticmethod
    def backward(ctx, g):
        return -Square.backward(ctx, g)


def test_the_table_shows_each_row_and_how_to_see_a_failure():
    skip = CHECKS.keys() - {"output", "gradient", "copies", "jvp"}
    report = mg.check_backward(WrongSign, torch.square, torch.randn(2), skip=skip)
    lines = str(report).splitlines()
    assert lines == [
        "gradient  failed          the gradient by input is -1 times what it should be: the sign is wrong",
        "                          Cure: Derive backward again: one gradient for each input of forward, in its shape and dtype, "
        "summed over the batch.",
        "output    passed          as the reference's",
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
    assert lines[:9] == [
        "Mend 'gradient' first: other checks compare with the same numbers.",
        "",
        "gradient       failed          AttributeError: 'MisspeltBackward' object has no attribute 'saved_tensor'",
        "                               Cure: Derive backward again: one gradient for each input of forward, in its shape and "
        "dtype, summed over the batch.",
        "frozen inputs  failed          the same error as 'gradient'",
        "more axes      failed          the same error as 'gradient'",
        "memory leak    failed          the same error as 'gradient'",
        "output         passed          as the reference's",
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
    lines = [line for line in str(report).splitlines() if "Cure: " not in line]
    assert [line.split("  ")[-1] for line in lines[2:5]] == [
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


def test_truth_values_follow_ok():
    assert report()
    assert not mg.check_backward(WrongSign, torch.square, *one(), skip=CHECKS.keys() - {"gradient"})


def test_a_failed_report_that_nobody_reads_is_no_success():
    sentence = (
        r"^check_backward found 1 failures \(gradient\), and nobody has looked at its report. "
        r"Call assert_ok\(\) on it, or print it.$"
    )
    with pytest.warns(UserWarning, match=sentence):
        mg.check_backward(WrongSign, torch.square, *one(), skip=CHECKS.keys() - {"gradient"})
    mg.check_backward(Square, torch.square, *one(), skip=CHECKS.keys() - {"gradient"})  # warnings are errors here
    assert "gradient  failed" in repr(
        mg.check_backward(WrongSign, torch.square, *one(), skip=CHECKS.keys() - {"gradient"})
    )


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch.compile itself
def test_nothing_buries_the_failed_rows_in_pytest(caplog):
    caplog.set_level("DEBUG")
    report = mg.check_backward(WrongSign, torch.square, *one(), skip=CHECKS.keys() - {"gradient", "torch.compile"})
    assert not [record for record in caplog.records if record.name == "torch.__trace"]
    with pytest.raises(AssertionError) as error:
        report.assert_ok()
    assert error.traceback[-1].ishidden(error)
    with pytest.raises(ValueError) as refusal:
        mg.check_backward(Square, torch.square, *one(), skip=["nothing"])
    assert refusal.traceback[-1].ishidden(refusal)


def test_every_check_has_a_cure():
    assert CURES.keys() == CHECKS.keys()


def test_what_a_layer_is_for_is_said_once():
    class RealMatrices(Linear):
        @staticmethod
        def forward(x, w, b):
            return torch.addmm(b, x, w.t())

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return g @ w if w is not None else None, g.t() @ x if x is not None else None, g.sum(0)

    rows = {"complex", "more axes", "fewer axes", "gradgradcheck"}
    report = mg.check_backward(RealMatrices, F.linear, *rectangular(), skip=CHECKS.keys() - rows)
    assert "complex" in report.failed and "gradgradcheck" in report.not_supported
    only = ("real", "2-d", "first order")
    report = mg.check_backward(RealMatrices, F.linear, *rectangular(), skip=CHECKS.keys() - rows, only=only)
    report.assert_ok(strict=True)
    assert {check.name: check.detail for check in report} == {
        "gradgradcheck": "only='first order'",
        "complex": "only='real'",
        "more axes": "only='2-d'",
        "fewer axes": "only='2-d'",
    }
    with pytest.raises(ValueError) as error:
        mg.check_backward(RealMatrices, F.linear, *rectangular(), only="real numbers")
    assert str(error.value) == (
        "check_backward expected `only` to say what the layer is for, got ['real numbers']. Choose from: real, 2-d, first order."
    )
