"""The switch to autograd's own backward pass."""

import threading

import pytest
import torch

import manualgrad as mg
from manualgrad.autograd.switch import by_autograd, is_by_autograd, something_stood_back


@pytest.fixture
def wrong() -> mg.Activation:
    """tanh with a derivative that is twice what it should be: by hand and by autograd can be told apart."""
    return mg.Activation("wrong tanh", value=torch.tanh, derivative=lambda z: 2 * (1 - torch.tanh(z) ** 2))


def gradient(layer: mg.Dense, x: torch.Tensor, inside: bool) -> torch.Tensor:
    if inside:
        with by_autograd():
            output = layer(x)
    else:
        output = layer(x)
    (found,) = torch.autograd.grad(output.sum(), [layer.weight])  # outside: the forward pass decides
    return found


def test_the_forward_pass_decides(wrong: mg.Activation) -> None:
    layer, x = mg.Dense(3, 2, activation=wrong), torch.randn(4, 3)
    torch.testing.assert_close(gradient(layer, x, inside=False), 2 * gradient(layer, x, inside=True))


@pytest.mark.parametrize("loss", [mg.QuadraticLoss(), mg.BinaryCrossEntropyLoss(), mg.SoftmaxCrossEntropyLoss()])
def test_losses_too(loss: torch.nn.Module) -> None:
    outputs, targets = torch.randn(4, 3, requires_grad=True), torch.rand(4, 3)
    by_hand = loss(outputs, targets)
    with by_autograd():
        by_torch = loss(outputs, targets)
    assert "LossFunction" in type(by_hand.grad_fn).__name__
    assert "LossFunction" not in type(by_torch.grad_fn).__name__
    assert torch.equal(by_hand, by_torch)


def test_a_block_knows_whether_a_hand_written_backward_pass_was_replaced(wrong: mg.Activation) -> None:
    x = torch.randn(4, 3)
    with by_autograd():
        assert not something_stood_back()
        mg.Dense(3, 2, activation=wrong)(x)
        with by_autograd():  # an inner block forgets nothing
            assert something_stood_back()
    mg.Dense(3, 2)(x)
    with by_autograd():
        torch.nn.Linear(3, 2)(x)
        assert not something_stood_back()


def test_nests_and_ends_after_an_error() -> None:
    assert not is_by_autograd()
    with by_autograd():
        with pytest.raises(RuntimeError, match="inner"):
            with by_autograd():
                assert is_by_autograd()
                raise RuntimeError("inner")
        assert is_by_autograd()
    assert not is_by_autograd()


def test_overlapping_blocks_of_two_threads_leave_it_off() -> None:
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with by_autograd():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(10)
    with by_autograd():  # opened while the other is open, closed after it
        leave.set()
        thread.join(10)
        assert is_by_autograd()
    assert not is_by_autograd()


def test_values_are_equal_under_autocast() -> None:
    """softplus is one that autocast would compute in float32."""
    layer, x = mg.Dense(3, 2, activation="softplus"), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        by_hand = layer(x)
        with by_autograd():
            by_torch = layer(x)
    assert by_hand.dtype == by_torch.dtype == torch.bfloat16
    assert torch.equal(by_hand, by_torch)
