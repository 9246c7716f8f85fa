"""What the losses refuse, in full sentences."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from tests.losses.test_losses import each_twin


Loss = Callable[[Tensor, Tensor], Tensor]


def fails(loss: Loss, outputs: object, targets: object, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        loss(outputs, targets)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [mg.QuadraticLoss(), mg.BinaryCrossEntropyLoss()], ids=["quadratic", "binary"])
@pytest.mark.parametrize("shape", [(4, 1), (1, 3), (3,), (3, 4), (4, 3, 1), ()])
def test_shapes_never_broadcast(loss: nn.Module, shape: tuple[int, ...]) -> None:
    fails(
        loss,
        torch.ones(4, 3),
        torch.ones(shape),
        ValueError,
        f"{type(loss).__name__} expected targets of the outputs' shape (4, 3), got {shape}. "
        "Reshape one of them; nothing is broadcast.",
    )


@pytest.mark.parametrize("loss", [mg.QuadraticLoss(), mg.BinaryCrossEntropyLoss()], ids=["quadratic", "binary"])
def test_class_indices_where_rows_are_needed(loss: nn.Module) -> None:
    fails(
        loss,
        torch.ones(4, 3),
        torch.tensor([0, 1, 2, 0]),
        ValueError,
        f"{type(loss).__name__} expected targets of the outputs' shape (4, 3), got (4,). "
        "Turn class indices into rows: torch.nn.functional.one_hot(targets, 3).to(outputs.dtype).",
    )


@pytest.mark.parametrize("shape", [(4, 1), (3,), (4, 3), ()])
def test_class_indices_of_the_wrong_shape(shape: tuple[int, ...]) -> None:
    fails(
        mg.SoftmaxCrossEntropyLoss(),
        torch.ones(4, 3),
        torch.zeros(shape, dtype=torch.int64),
        ValueError,
        "SoftmaxCrossEntropyLoss expected class indices of shape (4,) for outputs of shape (4, 3), "
        f"got {shape}. Reshape them, or pass probabilities as floating point of the outputs' shape.",
    )


def test_probabilities_of_the_wrong_shape() -> None:
    fails(
        mg.SoftmaxCrossEntropyLoss(),
        torch.ones(4, 3),
        torch.ones(3, 4),
        ValueError,
        "SoftmaxCrossEntropyLoss expected targets of the outputs' shape (4, 3), got (3, 4). "
        "Reshape one of them; nothing is broadcast.",
    )


@pytest.mark.parametrize(("outputs", "targets"), [((4, 3), (4,)), ((3,), ()), ((4, 3, 5), (4, 5))], ids=str)
def test_class_indices_in_floating_point(outputs: tuple[int, ...], targets: tuple[int, ...]) -> None:
    fails(
        mg.SoftmaxCrossEntropyLoss(),
        torch.ones(outputs),
        torch.ones(targets),
        ValueError,
        f"SoftmaxCrossEntropyLoss expected targets of the outputs' shape {outputs}, got {targets}. "
        "Reshape one of them, nothing is broadcast; or, if these are class indices, convert them with targets.long().",
    )


def test_targets_that_are_no_probabilities_are_taken_as_pytorch_takes_them() -> None:
    outputs, targets = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])
    loss = mg.BinaryCrossEntropyLoss()(outputs, targets)
    torch.testing.assert_close(loss, nn.BCEWithLogitsLoss()(outputs, targets))
    comparison = mg.compare(nn.Identity(), mg.BinaryCrossEntropyLoss(), outputs, targets)
    assert comparison.ok and comparison.anything_by_hand


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
def test_class_indices_of_the_wrong_dtype(dtype: torch.dtype) -> None:
    fails(
        mg.SoftmaxCrossEntropyLoss(),
        torch.ones(4, 3),
        torch.zeros(4, dtype=dtype),
        TypeError,
        f"SoftmaxCrossEntropyLoss expected class indices of dtype torch.int64, got {dtype}. "
        "Convert them with targets.long().",
    )


@pytest.mark.parametrize("index", [3, -1, 99, -99, -101])
def test_class_index_out_of_range(index: int) -> None:
    fails(
        mg.SoftmaxCrossEntropyLoss(),
        torch.ones(4, 3),
        torch.tensor([0, -100, index, 2]),
        ValueError,
        f"SoftmaxCrossEntropyLoss expected class indices from 0 to 2 for outputs of shape (4, 3), got {index}. "
        "Correct the targets or give the last layer more features.",
    )


@pytest.mark.parametrize("shape", [(), (4, 0)])
def test_no_class_axis(shape: tuple[int, ...]) -> None:
    fails(
        mg.SoftmaxCrossEntropyLoss(),
        torch.ones(shape),
        torch.ones(shape),
        ValueError,
        "SoftmaxCrossEntropyLoss expected outputs of shape (rows, classes, ...) or (classes,) with at least one class, "
        f"got {shape}. Give the last layer one feature for each class.",
    )


@each_twin
def test_not_tensors(ours: nn.Module, theirs: Loss) -> None:
    name = type(ours).__name__
    fails(
        ours,
        [[1.0]],
        torch.ones(1, 1),
        TypeError,
        f"{name} expected `outputs` to be a torch.Tensor, got list. Convert it with torch.as_tensor(outputs).",
    )
    fails(
        ours,
        torch.ones(1, 1),
        [[1.0]],
        TypeError,
        f"{name} expected `targets` to be a torch.Tensor, got list. Convert it with torch.as_tensor(targets).",
    )


@each_twin
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_outputs_that_are_not_floating_point(ours: nn.Module, theirs: Loss, dtype: torch.dtype) -> None:
    fails(
        ours,
        torch.ones(2, 3, dtype=dtype),
        torch.ones(2, 3),
        TypeError,
        f"{type(ours).__name__} expected floating point outputs, got {dtype}. "
        "Convert integers with .float(); take the real part or the absolute value of complex ones.",
    )


@pytest.mark.parametrize("loss", [mg.QuadraticLoss(), mg.BinaryCrossEntropyLoss(), mg.SoftmaxCrossEntropyLoss()])
def test_complex_targets(loss: Loss) -> None:
    """Their imaginary part would be left out of the cost."""
    fails(
        loss,
        torch.zeros(4, 3),
        torch.zeros(4, 3, dtype=torch.complex64),
        TypeError,
        f"{type(loss).__name__} expected real targets, got torch.complex64. Take their real part or their absolute value.",
    )
