"""The losses in value and gradient against torch's own."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import manualgrad as mg


Loss = Callable[[Tensor, Tensor], Tensor]


def half_sum_of_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """The definition, from parts that autograd differentiates."""
    return (0.5 * (outputs - targets) ** 2).sum(-1).mean()


def value_and_gradients(loss: Loss, outputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    outputs = outputs.detach().clone().requires_grad_()
    leaves = [outputs]
    if targets.is_floating_point():
        targets = targets.detach().clone().requires_grad_()
        leaves.append(targets)
    value = loss(outputs, targets)
    return value.detach(), *torch.autograd.grad(1.7 * value, leaves)


def assert_same(ours: Loss, theirs: Loss, outputs: Tensor, targets: Tensor, rtol: float = 1e-13) -> None:
    found = value_and_gradients(ours, outputs, targets)
    expected = value_and_gradients(theirs, outputs, targets)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-15, equal_nan=True)


# Quadratic


def test_quadratic_on_paper() -> None:
    outputs = torch.tensor([[1.0, 2.0], [3.0, 0.0]], requires_grad=True)
    targets = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    loss = mg.QuadraticLoss()(outputs, targets)
    assert loss.item() == (0.5 * (1 + 4) + 0.5 * 4) / 2
    loss.backward()
    assert outputs.grad is not None
    assert outputs.grad.tolist() == [[0.5, 1.0], [1.0, 0.0]]  # (a - y) / 2 rows


@pytest.mark.parametrize("shape", [(3,), (1,), (4, 3), (2, 5, 3), (2, 1, 5, 3), ()])
def test_quadratic_equals_its_definition(shape: tuple[int, ...]) -> None:
    outputs, targets = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    definition = half_sum_of_squares if shape else lambda a, y: 0.5 * (a - y) ** 2
    assert_same(mg.QuadraticLoss(), definition, outputs, targets)


def test_quadratic_is_half_the_features_times_mse() -> None:
    outputs, targets = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    assert_same(mg.QuadraticLoss(), lambda a, y: 3 * F.mse_loss(a, y), outputs, targets)


def test_quadratic_takes_integer_and_boolean_targets() -> None:
    outputs, targets = torch.randn(5, 2, dtype=torch.float64), torch.tensor([[0, 1]] * 5)
    expected = value_and_gradients(half_sum_of_squares, outputs, targets.double())[:2]
    for kind in (targets, targets.bool(), targets.to(torch.uint8)):
        torch.testing.assert_close(value_and_gradients(mg.QuadraticLoss(), outputs, kind), expected)


# Binary cross-entropy


@pytest.mark.parametrize("shape", [(), (7,), (4, 3), (2, 5, 3)])
def test_binary_equals_torch(shape: tuple[int, ...]) -> None:
    outputs, targets = torch.randn(shape, dtype=torch.float64) * 5, torch.rand(shape, dtype=torch.float64)
    assert_same(mg.BinaryCrossEntropyLoss(), nn.BCEWithLogitsLoss(), outputs, targets)


def test_binary_equals_torch_where_targets_are_certain() -> None:
    outputs = torch.randn(50, dtype=torch.float64) * 5
    for targets in ((torch.rand(50) < 0.5).double(), torch.zeros(50), torch.ones(50)):
        assert_same(mg.BinaryCrossEntropyLoss(), nn.BCEWithLogitsLoss(), outputs, targets.double())


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_binary_takes_integer_and_boolean_targets(dtype: torch.dtype) -> None:
    outputs, targets = torch.randn(6, 2), torch.tensor([[0, 1]] * 6)
    expected = value_and_gradients(nn.BCEWithLogitsLoss(), outputs, targets.float())[:2]
    torch.testing.assert_close(value_and_gradients(mg.BinaryCrossEntropyLoss(), outputs, targets.to(dtype)), expected)


# Softmax cross-entropy


@pytest.mark.parametrize(
    ("outputs", "targets"), [((4,), ()), ((5, 4), (5,)), ((1, 1), (1,)), ((5, 4, 3), (5, 3)), ((2, 4, 3, 2), (2, 3, 2))]
)
def test_softmax_equals_torch(outputs: tuple[int, ...], targets: tuple[int, ...]) -> None:
    z = torch.randn(outputs, dtype=torch.float64) * 3
    axis = 0 if len(outputs) == 1 else 1
    indices = torch.randint(outputs[axis], targets)
    assert_same(mg.SoftmaxCrossEntropyLoss(), nn.CrossEntropyLoss(), z, indices)
    probabilities = torch.rand(outputs, dtype=torch.float64)  # which need not add up to 1
    assert_same(mg.SoftmaxCrossEntropyLoss(), nn.CrossEntropyLoss(), z, probabilities)
    assert_same(mg.SoftmaxCrossEntropyLoss(), nn.CrossEntropyLoss(), z, probabilities.softmax(axis))


def test_indices_and_their_one_hot_rows_are_the_same_loss() -> None:
    z, indices = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2])
    loss = mg.SoftmaxCrossEntropyLoss()
    by_index = value_and_gradients(loss, z, indices)
    by_row = value_and_gradients(loss, z, F.one_hot(indices, 4).double())[:2]
    torch.testing.assert_close(by_index, by_row, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("indices", [[0, -100, 2, -100, 1], [-100] * 5])
def test_ignored_targets(indices: list[int]) -> None:
    """All of them ignored: the mean over none, NaN, with a gradient of 0, as torch says."""
    z = torch.randn(5, 4, dtype=torch.float64)
    assert_same(mg.SoftmaxCrossEntropyLoss(), nn.CrossEntropyLoss(), z, torch.tensor(indices))


def test_ignored_targets_on_further_axes() -> None:
    z, targets = torch.randn(5, 4, 3, dtype=torch.float64), torch.randint(4, (5, 3))
    targets[1, 2] = targets[0] = -100
    assert_same(mg.SoftmaxCrossEntropyLoss(), nn.CrossEntropyLoss(), z, targets)


def test_masked_classes() -> None:
    """-inf is the way to forbid a class."""
    z = torch.randn(5, 4, dtype=torch.float64)
    z[:, 2] = -float("inf")
    assert_same(mg.SoftmaxCrossEntropyLoss(), nn.CrossEntropyLoss(), z, torch.tensor([0, 1, 3, 0, 1]))


# All of them

TWINS: dict[str, tuple[Loss, Loss]] = {
    "binary": (mg.BinaryCrossEntropyLoss(), nn.BCEWithLogitsLoss()),
    "softmax": (mg.SoftmaxCrossEntropyLoss(), nn.CrossEntropyLoss()),
    "quadratic": (mg.QuadraticLoss(), half_sum_of_squares),
}
each_twin = pytest.mark.parametrize(("ours", "theirs"), TWINS.values(), ids=TWINS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["binary", "softmax"])
def test_huge_logits(name: str, dtype: torch.dtype) -> None:
    ours, theirs = TWINS[name]
    outputs = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]], dtype=dtype)
    for targets in (torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]]), torch.full((3, 3), 1 / 3)):
        found = value_and_gradients(ours, outputs, targets.to(dtype))
        assert all(torch.isfinite(x).all() for x in found)
        expected = value_and_gradients(theirs, outputs, targets.to(dtype))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=torch.finfo(dtype).eps)
    if name == "softmax":
        assert_same(ours, theirs, outputs, torch.tensor([0, 0, 2]), rtol=1e-6)


@each_twin
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(ours: Loss, theirs: Loss, dtype: torch.dtype) -> None:
    outputs, targets = torch.randn(8, 4, dtype=dtype), torch.rand(8, 4, dtype=dtype)
    value, gradient, target_gradient = value_and_gradients(ours, outputs, targets)
    assert value.dtype == gradient.dtype == target_gradient.dtype == dtype
    truth = value_and_gradients(theirs, outputs.double(), targets.double())
    scale = 8 * torch.finfo(dtype).eps
    for found, expected in zip((value, gradient, target_gradient), truth, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=scale, atol=scale * expected.abs().max().item())


@each_twin
def test_an_empty_batch(ours: Loss, theirs: Loss) -> None:
    """The mean over no rows is NaN, as torch says, and its gradient is empty."""
    value, gradient, target_gradient = value_and_gradients(ours, torch.empty(0, 3), torch.empty(0, 3))
    assert value.isnan()
    assert gradient.shape == target_gradient.shape == (0, 3)
    assert theirs(torch.empty(0, 3), torch.empty(0, 3)).isnan()


@each_twin
def test_second_derivatives(ours: Loss, theirs: Loss) -> None:
    outputs = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ours, (outputs, targets))
    assert torch.autograd.gradgradcheck(ours, (outputs, targets))


def test_second_derivatives_with_indices() -> None:
    outputs = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[0, 1], [2, -100], [1, 1], [-100, 0]])
    loss = mg.SoftmaxCrossEntropyLoss()
    assert torch.autograd.gradcheck(lambda z: loss(z, targets), (outputs,))
    assert torch.autograd.gradgradcheck(lambda z: loss(z, targets), (outputs,))


@each_twin
def test_only_what_is_needed_is_differentiated(ours: Loss, theirs: Loss) -> None:
    outputs, targets = torch.randn(4, 3), torch.rand(4, 3, requires_grad=True)
    ours(outputs, targets).backward()
    assert targets.grad is not None and outputs.grad is None
    assert not ours(outputs, targets.detach()).requires_grad


@each_twin
def test_non_contiguous_and_expanded_arguments(ours: Loss, theirs: Loss) -> None:
    outputs = torch.randn(3, 8, dtype=torch.float64).t()[::2]
    targets = torch.rand(3, dtype=torch.float64).expand(4, 3)
    assert_same(ours, theirs, outputs, targets)


@each_twin
def test_nothing_is_written_to(ours: Loss, theirs: Loss) -> None:
    outputs, targets = torch.randn(4, 3, requires_grad=True), torch.rand(4, 3)
    before = outputs.detach().clone(), targets.clone()
    ours(outputs, targets).backward()
    assert torch.equal(outputs, before[0]) and torch.equal(targets, before[1])
    assert outputs._version == targets._version == 0


@each_twin
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_float32(ours: Loss, theirs: Loss, dtype: torch.dtype) -> None:
    outputs, targets = torch.randn(8, 4).to(dtype).requires_grad_(), torch.rand(8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        value = ours(outputs, targets)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, theirs(outputs.float(), targets))
    value.backward()
    assert outputs.grad is not None and outputs.grad.dtype == dtype


@each_twin
def test_meta_device(ours: Loss, theirs: Loss) -> None:
    outputs = torch.empty(4, 3, device="meta", requires_grad=True)
    ours(outputs, torch.empty(4, 3, device="meta")).backward()
    assert outputs.grad is not None and outputs.grad.is_meta


@each_twin
def test_copies(ours: nn.Module, theirs: Loss) -> None:
    outputs, targets = torch.randn(4, 3), torch.rand(4, 3)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(twin(outputs, targets), ours(outputs, targets))
    assert list(ours.state_dict()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_binary_keeps_its_digits_where_the_net_is_sure_and_right(dtype: torch.dtype) -> None:
    """sigmoid(17.5) - 1 is 0 in float32; its true value is -2.5e-8."""
    z = torch.tensor([17.5, -17.5, 30.0, -30.0, 0.0, 2.0], dtype=dtype)
    y = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.25], dtype=dtype)
    truth = value_and_gradients(mg.BinaryCrossEntropyLoss(), z.double(), y.double())
    exact = -torch.special.expit(-z[0].double()) / 6
    torch.testing.assert_close(truth[1][0], 1.7 * exact, rtol=1e-14, atol=0)
    assert truth[1][1] == -truth[1][0]
    for found, expected in zip(value_and_gradients(mg.BinaryCrossEntropyLoss(), z, y)[:2], truth[:2], strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=0)
