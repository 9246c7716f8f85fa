"""What TrainStep refuses, in full sentences, and that no weight has changed by then."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg


EXPECTED_MODEL = (
    "TrainStep expected Dense, nn.Linear, nn.Flatten, nn.Identity, nn.Dropout, activations such as nn.ReLU, and nn.Sequential "
    "of them, got {}. Train this model with autograd: mg.convert(model) and an optimizer."
)
EXPECTED_LOSS = (
    "TrainStep expected mg.QuadraticLoss, mg.SoftmaxCrossEntropyLoss, mg.BinaryCrossEntropyLoss, or the unweighted mean "
    "nn.MSELoss(), nn.CrossEntropyLoss() or nn.BCEWithLogitsLoss(), got {}. Use one of these, or train with autograd."
)


def step_for(model: nn.Module, loss: nn.Module | None = None, **options: Any) -> mg.TrainStep:
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    return mg.TrainStep(model, loss or mg.QuadraticLoss(), optimizer, **options)


def raises(kind: type[Exception], sentence: str) -> Any:
    return pytest.raises(kind, match=f"^{re.escape(sentence)}$")


class Own(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


@pytest.mark.parametrize(
    ("model", "called"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout1d()), "`1`, a Dropout1d"),
        (nn.Sequential(nn.Sequential(nn.LayerNorm(3)), nn.Linear(3, 3)), "`0.0`, a LayerNorm"),
        (Own(nn.Linear(3, 3)), "Own"),
        (nn.Bilinear(3, 3, 3), "Bilinear"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), "ParametrizedLinear"),
    ],
)
def test_a_module_that_is_not_supported(model: nn.Module, called: str) -> None:
    with raises(TypeError, EXPECTED_MODEL.format(called)):
        step_for(model)


@pytest.mark.parametrize(
    "loss",
    [
        nn.L1Loss(),
        nn.MSELoss(reduction="sum"),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(ignore_index=0),
        nn.CrossEntropyLoss(weight=torch.ones(3)),
        nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)),
    ],
    ids=str,
)
def test_a_loss_that_is_not_supported(loss: nn.Module) -> None:
    with raises(TypeError, EXPECTED_LOSS.format(repr(loss))):
        step_for(mg.MLP([3, 3]), loss)


def test_another_optimizer() -> None:
    model = mg.MLP([3, 3])
    optimizer: Any = torch.optim.RMSprop(model.parameters(), lr=0.1)
    with raises(
        TypeError,
        "TrainStep expected `optimizer` to be a GradientDescent, or torch.optim's SGD, Adam or AdamW, got RMSprop. "
        "Pass mg.GradientDescent(model.parameters(), lr=...), or train with autograd.",
    ):
        mg.TrainStep(model, mg.QuadraticLoss(), optimizer)


def test_something_that_is_no_model_and_a_max_norm_that_is_none() -> None:
    model = mg.MLP([3, 3])
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    with raises(
        TypeError,
        "TrainStep expected `model` to be a torch.nn.Module, got list. Pass for example mg.MLP([784, 30, 10]).",
    ):
        mg.TrainStep([model], mg.QuadraticLoss(), optimizer)  # type: ignore[arg-type]
    for wrong in (0, -1.0, float("nan")):
        with raises(
            ValueError, f"TrainStep expected `max_norm` to be a number > 0 or None, got {wrong}. Pass for example 1.0."
        ):
            mg.TrainStep(model, mg.QuadraticLoss(), optimizer, max_norm=wrong)


def tied() -> nn.Module:
    model = mg.MLP([3, 3, 3])
    model[1].weight = model[0].weight
    return model


def sharing_memory() -> nn.Module:
    model = mg.MLP([3, 3, 3])
    model[1].weight = nn.Parameter(model[0].weight.detach().t())
    return model


def repeated() -> nn.Module:
    layer = mg.Dense(3, 3, bias=False)
    return nn.Sequential(layer, nn.ReLU(), layer)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (tied, "`0.weight` and `1.weight`"),
        (sharing_memory, "`0.weight` and `1.weight`"),
        (repeated, "`0.weight` and `2.weight`"),
    ],
)
def test_tied_weights(make: Callable[[], nn.Module], names: str) -> None:
    with raises(
        ValueError,
        f"TrainStep expected every weight to have memory of its own, got {names}, which are tied. "
        "Untie them, or train with autograd.",
    ):
        step_for(make())


def test_parameters_that_are_not_plain() -> None:
    for dtype, device in ((torch.complex64, "cpu"), (torch.float32, "meta")):
        with raises(
            TypeError,
            f"TrainStep expected plain real floating point parameters, got `0.weight`, a Parameter of {dtype} on {device}. "
            "Convert or materialise it first, or train with autograd.",
        ):
            step_for(mg.MLP([3, 3], dtype=dtype, device=device))
    with raises(
        ValueError,
        "TrainStep expected parameters of one dtype on one device, got torch.float32 on cpu for `0.weight` and torch.float64 "
        "on cpu for `1.weight`. Convert the model with model.to(...).",
    ):
        step_for(nn.Sequential(mg.Dense(3, 3), mg.Dense(3, 3, dtype=torch.float64)))
    with raises(ValueError, "TrainStep expected a model with weights, got one without. Give it a Dense layer."):
        mg.TrainStep(nn.Sequential(nn.ReLU()), mg.QuadraticLoss(), mg.GradientDescent([torch.ones(1)], lr=0.1))


def test_hooks() -> None:
    model = mg.MLP([3, 3])
    handle = model[0].register_forward_hook(lambda *_: None)
    with raises(
        TypeError,
        "TrainStep expected modules without hooks, got some on `0`, a Dense, which it would not call. "
        "Remove them, or train with autograd.",
    ):
        step_for(model)
    handle.remove()
    model[0].weight.register_hook(lambda g: g)
    with raises(
        TypeError,
        "TrainStep expected parameters without hooks, got some on `0.weight`, which it would not call. "
        "Remove them, or train with autograd.",
    ):
        step_for(model)


X, Y = torch.ones(2, 3), torch.ones(2, 4)
BATCHES: list[tuple[nn.Module, Any, Any, type[Exception], str]] = [
    (
        mg.QuadraticLoss(), torch.ones(2, 5), Y, ValueError,
        "TrainStep expected inputs that give layer `0` a tensor of shape (..., 3), got one of shape (2, 5) from inputs of shape "
        "(2, 5). Change the inputs or the model's sizes.",
    ),
    (
        mg.QuadraticLoss(), X, torch.ones(2), ValueError,
        "QuadraticLoss expected targets of the outputs' shape (2, 4), got (2,). Reshape one of them; nothing is broadcast.",
    ),
    (
        nn.MSELoss(), X, torch.ones(2, 1), ValueError,
        "MeanSquaredError expected targets of the outputs' shape (2, 4), got (2, 1). Reshape one of them; nothing is broadcast.",
    ),
    (
        mg.QuadraticLoss(), X.double(), Y, TypeError,
        "TrainStep expected inputs of the parameters' dtype torch.float32, got torch.float64. "
        "Convert them with inputs.to(torch.float32).",
    ),
    (
        mg.QuadraticLoss(), X, Y.double(), TypeError,
        "TrainStep expected targets of the outputs' dtype torch.float32, got torch.float64. "
        "Convert them with targets.to(torch.float32).",
    ),
    (
        mg.QuadraticLoss(), X.to("meta"), Y, ValueError,
        "TrainStep expected inputs on the parameters' device cpu, got meta. Move them with inputs.to('cpu').",
    ),
    (
        mg.QuadraticLoss(), X, Y.to("meta"), ValueError,
        "TrainStep expected targets on the parameters' device cpu, got meta. Move them with targets.to('cpu').",
    ),
    (
        mg.QuadraticLoss(), [1.0], Y, TypeError,
        "TrainStep expected two tensors, inputs and targets, got list and Tensor. Convert them with torch.as_tensor(...).",
    ),
    (
        nn.CrossEntropyLoss(), X, torch.tensor([0, 4]), ValueError,
        "SoftmaxCrossEntropyLoss expected class indices from 0 to 3 for outputs of shape (2, 4), got 4. "
        "Correct the targets or give the last layer more features.",
    ),
    (
        nn.CrossEntropyLoss(), X, torch.tensor([0, 1], dtype=torch.int32), TypeError,
        "SoftmaxCrossEntropyLoss expected class indices of dtype torch.int64, got torch.int32. Convert them with targets.long().",
    ),
]  # fmt: skip


@pytest.mark.parametrize("warm", [False, True], ids=["first call", "later call"])
@pytest.mark.parametrize(("loss", "inputs", "targets", "kind", "sentence"), BATCHES)
def test_a_batch_that_does_not_fit(
    loss: nn.Module, inputs: Any, targets: Any, kind: type[Exception], sentence: str, warm: bool
) -> None:
    model = mg.MLP([3, 5, 4])
    step = step_for(model, loss)
    good = torch.zeros(2, dtype=torch.int64) if isinstance(loss, nn.CrossEntropyLoss) else Y
    if warm:
        step(X, good)
    before = copy.deepcopy(model.state_dict())
    with raises(kind, sentence):
        step(inputs, targets)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert step(X, good).isfinite()  # and it goes on


def replace_layer(model: Any) -> None:
    model[1] = mg.Dense(5, 4)


def add_layer(model: Any) -> None:
    model.append(nn.ReLU())


def replace_weight(model: Any) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def change_activation(model: Any) -> None:
    model[0].activation = mg.activations["tanh"]


def add_hook(model: Any) -> None:
    model[0].register_forward_hook(lambda *_: None)


def same_memory_in_another_order(model: Any) -> None:
    weight = model[1].weight.data
    model[1].weight.data = weight.as_strided(weight.shape, (1, weight.size(0)))


def fewer_rows(model: Any) -> None:
    model[1].weight.data = model[1].weight.data[:2]


CHANGES: dict[Callable[[Any], Any], str] = {
    replace_layer: "`1` of the model was replaced",
    add_layer: "a layer was added to the model",
    replace_weight: "`weight` of the model was replaced",
    change_activation: "`activation` of the model was replaced",
    add_hook: "a hook was added to the model, which TrainStep would not call",
    same_memory_in_another_order: "the parameter `1.weight` was moved or reallocated",
    fewer_rows: "the parameter `1.weight` was moved or reallocated",
    nn.Module.double: "the parameter `0.weight` was moved or reallocated",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_was_changed(change: Callable[[Any], Any]) -> None:
    model = mg.MLP([3, 5, 4])
    step = step_for(model)
    step(X, Y)
    change(model)
    before = copy.deepcopy(model.state_dict())
    with raises(
        RuntimeError,
        f"TrainStep expected the model that it was made for, but {CHANGES[change]}. Nothing was updated. "
        "Make a new one: mg.TrainStep(model, loss, optimizer).",
    ):
        step(X, Y)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_step_hooks_and_autocast() -> None:
    model = mg.MLP([3, 5, 4])
    step = step_for(model)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        raises(
            RuntimeError,
            "TrainStep expected to run outside torch.autocast, got a call inside: it computes in the parameters' dtype "
            "torch.float32. Leave autocast, or convert the model with model.to(torch.bfloat16).",
        ),
    ):
        step(X, Y)
    step.optimizer.register_step_post_hook(lambda *_: None)
    with raises(
        RuntimeError,
        "TrainStep expected an optimizer without step hooks, got one with some, which it would not call. "
        "Remove them, or train with autograd.",
    ):
        step(X, Y)


def test_nothing_to_train() -> None:
    model = mg.MLP([3, 5, 4])
    step = step_for(model)
    model.requires_grad_(False)
    with raises(
        ValueError,
        "TrainStep expected an optimizer with some of the model's parameters that are not frozen, got one with none. "
        "Pass mg.GradientDescent(model.parameters(), lr=...), or unfreeze a layer with layer.requires_grad_().",
    ):
        step(X, Y)
