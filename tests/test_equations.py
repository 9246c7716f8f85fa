"""The four equations with numbers that can be checked on paper."""

import pytest
import torch

from manualgrad import equations
from manualgrad.activation.built_in import activations, identity


W = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 1.0]])  # (2, 3)
B = torch.tensor([10.0, 20.0])
A = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]])  # two rows (2, 3)
DELTA = torch.tensor([[1.0, 2.0], [3.0, -1.0]])  # (2, 2)


def test_weighted_sum() -> None:
    assert equations.weighted_sum(A, W, B).tolist() == [[17.0, 21.0], [9.0, 19.0]]
    assert equations.weighted_sum(A, W, None).tolist() == [[7.0, 1.0], [-1.0, -1.0]]


@pytest.mark.parametrize("shape", [(3,), (0, 3), (4, 3), (2, 0, 3), (2, 5, 3)])
def test_weighted_sum_keeps_the_leading_axes(shape: tuple[int, ...]) -> None:
    assert equations.weighted_sum(torch.ones(shape), W, B).shape == (*shape[:-1], 2)


def test_output_error_of_the_quadratic_cost_on_a_sigmoid() -> None:
    a, y = torch.tensor([0.5, 0.8]), torch.tensor([0.0, 1.0])
    delta = equations.output_error(a - y, activations["sigmoid"], a)
    torch.testing.assert_close(delta, torch.tensor([0.5 * 0.25, -0.2 * 0.16]))


def test_output_error_of_the_identity_is_the_cost_gradient() -> None:
    assert equations.output_error(DELTA, identity, None) is DELTA


def test_output_error_is_the_same_by_kernel_and_by_formula() -> None:
    z = torch.randn(50, dtype=torch.float64)
    g = torch.randn(50, dtype=torch.float64)
    for activation in activations.values():
        kept = activation.value(z) if activation.from_output else z
        by_formula = equations.output_error(g, activation, kept)  # grad mode is on
        with torch.no_grad():
            by_kernel = equations.output_error(g, activation, kept)
        torch.testing.assert_close(by_kernel, by_formula, rtol=1e-14, atol=1e-15)


def test_output_error_conjugates_a_complex_derivative() -> None:
    a = torch.tensor([0.3 + 0.4j])
    delta = equations.output_error(torch.tensor([1 + 0j]), activations["tanh"], a)
    torch.testing.assert_close(delta, (1 - a * a).conj())


def test_backpropagated_error() -> None:
    assert equations.backpropagated_error(W, DELTA).tolist() == [[-1.0, 2.0, 5.0], [4.0, 6.0, 8.0]]


def test_weight_gradient_is_the_sum_of_the_outer_products() -> None:
    expected = sum((torch.outer(delta, a) for delta, a in zip(DELTA, A, strict=True)), torch.zeros(2, 3))
    assert expected.tolist() == [[1.0, 3.0, -1.0], [2.0, -1.0, 5.0]]
    assert equations.weight_gradient(DELTA, A).tolist() == expected.tolist()


def test_bias_gradient_is_the_sum_of_the_errors() -> None:
    assert equations.bias_gradient(DELTA).tolist() == [4.0, 1.0]


def test_gradients_of_no_rows_are_zero() -> None:
    assert equations.weight_gradient(DELTA[:0], A[:0]).tolist() == [[0.0] * 3] * 2
    assert equations.bias_gradient(DELTA[:0]).tolist() == [0.0, 0.0]


def test_complex_gradients_conjugate_what_they_transpose() -> None:
    w = torch.tensor([[1 + 2j, 3 - 1j]])
    delta = torch.tensor([[2 - 1j]])
    a = torch.tensor([[1j, 2 + 1j]])
    assert equations.backpropagated_error(w, delta).tolist() == [[(2 - 1j) * (1 - 2j), (2 - 1j) * (3 + 1j)]]
    assert equations.weight_gradient(delta, a).tolist() == [[(2 - 1j) * -1j, (2 - 1j) * (2 - 1j)]]


@pytest.mark.parametrize("eta", [0.5, torch.tensor(0.5), torch.tensor([0.5])])
def test_descent(eta: float | torch.Tensor) -> None:
    w = W.clone()
    assert equations.descent(w, torch.ones(2, 3), eta).tolist() == (W - 0.5).tolist()
    assert torch.equal(w, W)
    assert equations.descent(w, torch.ones(2, 3), eta, out=w) is w
    assert torch.equal(w, W - 0.5)


def test_nothing_is_written_to() -> None:
    tensors = (W, B, A, DELTA)
    versions = [x._version for x in tensors]
    equations.weighted_sum(A, W, B)
    equations.backpropagated_error(W, DELTA)
    equations.weight_gradient(DELTA, A)
    equations.bias_gradient(DELTA)
    equations.descent(W, A, 0.1)
    for activation in activations.values():
        with torch.no_grad():
            equations.output_error(DELTA, activation, DELTA)
    assert [x._version for x in tensors] == versions
