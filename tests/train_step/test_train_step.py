"""TrainStep against autograd and torch.optim.SGD: the same weights, in float64 to 1e-12."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from tests.train_step.trainings import assert_same, autograd_step, batches, plain


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def branching(z: Tensor) -> Tensor:
    return z * (2 if z.sum() > 0 else 1)


def branching_derivative(z: Tensor) -> Tensor:
    return torch.full_like(z, 2 if z.sum() > 0 else 1)


@pytest.mark.parametrize("activation", [*mg.activations, "cube", "branching"])
def test_every_activation(activation: str) -> None:
    mg.Activation("cube", value=lambda z: z**3 / 10, derivative=lambda z: 3 * z * z / 10)
    mg.Activation("branching", value=branching, derivative=branching_derivative)  # what a recording could not follow
    model = mg.MLP([6, 5, 5, 4], activation, output_activation=activation, dtype=torch.float64)
    reference = plain(model)
    step = mg.TrainStep(model, mg.QuadraticLoss(), mg.GradientDescent(model.parameters(), lr=0.05))
    sgd = torch.optim.SGD(reference.parameters(), lr=0.05)
    for x, y in batches(200):
        expected = autograd_step(reference, mg.QuadraticLoss(), sgd, x, y)
        torch.testing.assert_close(step(x, y), expected, rtol=1e-12, atol=1e-12)
    assert_same(model, reference)


LOSSES: dict[str, tuple[nn.Module, nn.Module]] = {
    "quadratic": (mg.QuadraticLoss(), mg.QuadraticLoss()),
    "mean squared": (nn.MSELoss(), nn.MSELoss()),
    "class indices": (nn.CrossEntropyLoss(), nn.CrossEntropyLoss()),
    "class probabilities": (mg.SoftmaxCrossEntropyLoss(), nn.CrossEntropyLoss()),
    "binary": (mg.BinaryCrossEntropyLoss(), nn.BCEWithLogitsLoss()),
    "binary of torch": (nn.BCEWithLogitsLoss(), nn.BCEWithLogitsLoss()),
}


@pytest.mark.parametrize("max_norm", [None, 0.1])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_and_clipping(name: str, max_norm: float | None) -> None:
    ours, theirs = LOSSES[name]
    model = mg.MLP(
        [6, 20, 4], "tanh", dtype=torch.float64
    )  # clipped from factors in one layer, from entries in the other
    reference = plain(model)
    step = mg.TrainStep(model, ours, mg.GradientDescent(model.parameters(), lr=0.1), max_norm=max_norm)
    sgd = torch.optim.SGD(reference.parameters(), lr=0.1)
    for x, y in batches(200, classes=name == "class indices"):
        expected = autograd_step(reference, theirs, sgd, x, y, max_norm)
        torch.testing.assert_close(step(x, y), expected, rtol=1e-12, atol=1e-12)
    assert_same(model, reference)


def test_ignored_classes_and_targets_of_zeros_and_ones() -> None:
    for loss, y in (
        (nn.CrossEntropyLoss(), torch.tensor([0, -100, 3])),
        (nn.BCEWithLogitsLoss(), torch.eye(3, 4).bool()),
        (nn.MSELoss(), torch.eye(3, 4, dtype=torch.int32)),
    ):
        model = mg.MLP([6, 5, 4], dtype=torch.float64)
        reference = plain(model)
        step = mg.TrainStep(model, loss, mg.GradientDescent(model.parameters(), lr=0.1))
        sgd = torch.optim.SGD(reference.parameters(), lr=0.1)
        for x, _ in batches(4):
            step(x[:3], y)
            autograd_step(reference, loss, sgd, x[:3], y if y.dtype == torch.int64 else y.double())
        assert_same(model, reference)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1},
    {"maximize": True, "lr": 1e-3},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "dampening": 0.5},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"momentum": 0.5, "dampening": 0.5, "weight_decay": 0.01, "maximize": True, "lr": 1e-3},
    {"lr": torch.tensor(0.05, dtype=torch.float64), "momentum": 0.5},
]


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_under_a_scheduler(options: dict[str, Any], max_norm: float | None) -> None:
    model = mg.MLP([6, 20, 4], "sigmoid", output_activation="sigmoid", dtype=torch.float64)
    reference = plain(model)
    ours = mg.GradientDescent(model.parameters(), **{"lr": 0.1, **copy.deepcopy(options)})
    sgd = torch.optim.SGD(reference.parameters(), **{"lr": 0.1, **copy.deepcopy(options)})
    schedules = [torch.optim.lr_scheduler.StepLR(o, 30, 0.5) for o in (ours, sgd)]
    step = mg.TrainStep(model, mg.QuadraticLoss(), ours, max_norm=max_norm)
    for x, y in batches(200):
        step(x, y)
        autograd_step(reference, mg.QuadraticLoss(), sgd, x, y, max_norm)
        for schedule in schedules:
            schedule.step()
    assert_same(model, reference)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        if "momentum" in options:
            velocity = ours.state[p]["momentum_buffer"]
            torch.testing.assert_close(velocity, sgd.state[q]["momentum_buffer"], rtol=1e-12, atol=1e-12)


def test_param_groups_with_options_of_their_own() -> None:
    model = mg.MLP([6, 5, 4], dtype=torch.float64)
    reference = plain(model)
    optimizers: list[Any] = []
    for kind, (w, b, w2, _) in ((mg.GradientDescent, model.parameters()), (torch.optim.SGD, reference.parameters())):
        groups: list[dict[str, Any]] = [{"params": [w, b], "lr": 0.2, "momentum": 0.9}, {"params": [w2]}]
        optimizers.append(kind(groups, lr=0.05))
    step = mg.TrainStep(model, nn.MSELoss(), optimizers[0])
    for i, (x, y) in enumerate(batches(40)):
        if i == 20:  # the last bias was in no group until now
            optimizers[0].add_param_group({"params": [model[1].bias], "lr": 0.3})
            optimizers[1].add_param_group({"params": [reference[2].bias], "lr": 0.3})
        step(x, y)
        autograd_step(reference, nn.MSELoss(), optimizers[1], x, y)
    assert_same(model, reference)


def test_a_model_of_torch_modules_with_more_axes() -> None:
    model = nn.Sequential(
        nn.Tanh(),
        nn.Linear(4, 5, bias=False),
        nn.Identity(),
        nn.Sequential(nn.LeakyReLU(0.2), nn.Softplus(2.0, 3.0)),
        nn.Flatten(),
        nn.Linear(15, 6),
        nn.ELU(0.7),
        nn.Linear(6, 6),
        nn.ReLU(),
        nn.Linear(6, 6),
        nn.Linear(6, 3),
        nn.GELU("tanh"),
        nn.SiLU(),
    ).double()
    reference = copy.deepcopy(model)
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1, weight_decay=0.01)
    step = mg.TrainStep(model, nn.MSELoss(), optimizer, max_norm=1.0)
    sgd = torch.optim.SGD(reference.parameters(), lr=0.1, weight_decay=0.01)
    for i in range(60):
        x, y = torch.randn(2 + i % 3, 3, 4, dtype=torch.float64), torch.randn(2 + i % 3, 3, dtype=torch.float64)
        step(x, y)
        autograd_step(reference, nn.MSELoss(), sgd, x, y, max_norm=1.0)
    assert_same(model, reference)


@pytest.mark.parametrize("shape", [(6,), (1, 6), (2, 3, 6), (2, 1, 3, 6), (0, 6)], ids=str)
def test_inputs_of_any_shape_and_layout(shape: tuple[int, ...]) -> None:
    model = mg.MLP([6, 5, 4], "sigmoid", dtype=torch.float64)
    reference = plain(model)
    step = mg.TrainStep(model, mg.QuadraticLoss(), mg.GradientDescent(model.parameters(), lr=0.1, weight_decay=0.1))
    sgd = torch.optim.SGD(reference.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        x = torch.randn(*shape[:-1], 12, dtype=torch.float64)[..., ::2]
        y = torch.randn(4, *shape[:-1], dtype=torch.float64).movedim(0, -1)
        step(x, y)
        autograd_step(reference, mg.QuadraticLoss(), sgd, x, y)
    assert_same(model, reference)


@pytest.mark.parametrize("frozen", ["0.weight", "0.weight 0.bias", "1.weight 1.bias 2.bias", "2.weight 2.bias"])
def test_frozen_parameters_also_when_frozen_later(frozen: str) -> None:
    model = mg.MLP([6, 5, 5, 4], "tanh", dtype=torch.float64)
    reference = plain(model)
    step = mg.TrainStep(model, nn.MSELoss(), mg.GradientDescent(model.parameters(), lr=0.1, weight_decay=0.1))
    sgd = torch.optim.SGD(reference.parameters(), lr=0.1, weight_decay=0.1)
    for i, (x, y) in enumerate(batches(30)):
        for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
            p.requires_grad_(10 <= i < 20 or name not in frozen.split())
            q.requires_grad_(p.requires_grad)
        step(x, y)
        autograd_step(reference, nn.MSELoss(), sgd, x, y)
    assert_same(model, reference)


def test_autograd_and_train_steps_alternate() -> None:
    model = mg.MLP([6, 5, 4], dtype=torch.float64)
    reference = plain(model)
    ours = mg.GradientDescent(model.parameters(), lr=0.1, momentum=0.9, dampening=0.1)
    sgd = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, dampening=0.1)
    step = mg.TrainStep(model, mg.QuadraticLoss(), ours)
    for i, (x, y) in enumerate(batches(40)):
        if i % 3 == 1:
            autograd_step(model, mg.QuadraticLoss(), ours, x, y)
        else:
            step(x, y)
        if i == 20:  # a checkpoint is loaded: v is then another tensor
            model.load_state_dict(copy.deepcopy(model.state_dict()))
            ours.load_state_dict(copy.deepcopy(ours.state_dict()))
        autograd_step(reference, mg.QuadraticLoss(), sgd, x, y)
    assert_same(model, reference)


def test_a_copy_goes_on_by_itself() -> None:
    model = mg.MLP([6, 5, 4], dtype=torch.float64)
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1, momentum=0.9)
    step = mg.TrainStep(model, mg.QuadraticLoss(), optimizer, max_norm=1.0)
    (x, y), *_ = batches(1)
    step(x, y)
    other = copy.deepcopy(step)
    assert other.model is not model and other.optimizer is not optimizer and other.max_norm == 1.0
    before = copy.deepcopy(model)
    other(x, y)
    assert_same(model, before)
    step(x, y)
    assert_same(model, other.model)


def test_the_loss_is_a_new_tensor_outside_any_graph() -> None:
    model = mg.MLP([6, 5, 4], dtype=torch.float64)
    step = mg.TrainStep(model, mg.QuadraticLoss(), mg.GradientDescent(model.parameters(), lr=0.1))
    (x, y), (x2, y2) = batches(2)
    first = step(x, y)
    value = first.item()
    step(x2, y2)
    assert first.item() == value and first.shape == () and not first.requires_grad and not first.is_inference()
    (torch.ones((), dtype=torch.float64, requires_grad=True) * first).backward()  # may be part of the caller's graph
    assert all(p.grad is None and not p.is_inference() for p in model.parameters())


def test_autograd_notices_that_the_weights_have_changed() -> None:
    model = mg.MLP([6, 5, 4], dtype=torch.float64)
    step = mg.TrainStep(model, mg.QuadraticLoss(), mg.GradientDescent(model.parameters(), lr=0.1))
    (x, y), *_ = batches(1)
    for _ in range(2):  # while recording, then while replaying
        loss = mg.QuadraticLoss()(model(x), y)
        step(x, y)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_the_callers_own_tensors_and_modes_make_no_difference() -> None:
    model = mg.MLP([6, 5, 6], dtype=torch.float64)
    reference = plain(model)
    step = mg.TrainStep(model, mg.QuadraticLoss(), mg.GradientDescent(model.parameters(), lr=0.05))
    sgd = torch.optim.SGD(reference.parameters(), lr=0.05)
    x = y = torch.randn(5, 6, dtype=torch.float64)
    for i in range(20):
        autograd_step(reference, mg.QuadraticLoss(), sgd, x.clone(), y)
        with torch.inference_mode(i % 3 == 0):  # the first call too
            step(x, y)
        assert not step.outputs.is_inference()
        x = (
            step.outputs if i % 2 else model[1].weight.detach()[:5, :5].mean() + y
        )  # memory that the next call writes to
    assert_same(model, reference)


def test_a_nan_is_returned() -> None:
    model = mg.MLP([6, 5, 4], dtype=torch.float64)
    step = mg.TrainStep(model, mg.QuadraticLoss(), mg.GradientDescent(model.parameters(), lr=0.1))
    (x, y), *_ = batches(1)
    assert step(x, y).isfinite()
    assert step(x * float("nan"), y).isnan()


class Scaled(mg.QuadraticLoss):
    scale = 1.0

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * super().value(outputs, targets)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * super().gradient(outputs, targets)


def test_a_loss_of_ones_own_is_called_at_every_step() -> None:
    loss = Scaled()
    model = mg.MLP([6, 5, 4], dtype=torch.float64)
    reference = plain(model)
    step = mg.TrainStep(model, loss, mg.GradientDescent(model.parameters(), lr=0.1))
    sgd = torch.optim.SGD(reference.parameters(), lr=0.1)
    for x, y in batches(20):
        loss.scale *= 0.9
        torch.testing.assert_close(step(x, y), autograd_step(reference, loss, sgd, x, y), rtol=1e-12, atol=1e-12)
    assert_same(model, reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_are_as_near_to_the_truth_as_autograd(dtype: torch.dtype) -> None:
    model = mg.MLP([6, 16, 4], "gelu", dtype=dtype)
    truth, reference = plain(model).double(), plain(model)
    step = mg.TrainStep(model, nn.MSELoss(), mg.GradientDescent(model.parameters(), lr=0.1, momentum=0.9))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (truth, reference)]
    for x, y in batches(20):
        x, y = x.to(dtype), y.to(dtype)
        step(x, y)
        autograd_step(truth, nn.MSELoss(), optimizers[0], x.double(), y.double())
        autograd_step(reference, nn.MSELoss(), optimizers[1], x, y)

    def error(m: nn.Module) -> float:
        pairs = zip(m.parameters(), truth.parameters(), strict=True)
        return max((p.double() - t).abs().max().item() for p, t in pairs)

    assert error(model) <= 2 * error(reference)


def test_many_shapes_do_not_pile_up_memory() -> None:
    model = mg.MLP([6, 5, 4])
    step = mg.TrainStep(model, nn.MSELoss(), mg.GradientDescent(model.parameters(), lr=0.1))
    for r in range(1, 60):
        step(torch.randn(r, 6), torch.randn(r, 4))
    assert len(step._recorded) <= 16


def test_its_repr_is_one_line() -> None:
    model = nn.Sequential(nn.Flatten(), mg.MLP([6, 5, 2]), nn.Sigmoid())
    step = mg.TrainStep(model, nn.MSELoss(), mg.GradientDescent(model.parameters(), lr=1.0), max_norm=2.0)
    assert repr(step) == "TrainStep(Sequential, MSELoss, GradientDescent, 2 layers from 6 to 2, max_norm=2.0)"
