"""What TrainStep refuses when it is made, it refuses at every later call too; what may change, it follows."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import manualgrad as mg


X, Y = torch.linspace(-1, 1, 15).view(5, 3).double(), torch.linspace(0, 1, 10).view(5, 2).double()


class Own(mg.QuadraticLoss):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 3 * super().forward(outputs, targets)


class Backwards(nn.Sequential):
    def __iter__(self) -> Any:
        return reversed(list(self._modules.values()))


class Calls(mg.MLP):
    def __call__(self, x: Tensor) -> Any:
        return 2 * super().__call__(x)


def made(loss: nn.Module | None = None, model: nn.Module | None = None, **options: Any) -> mg.TrainStep:
    torch.manual_seed(0)
    model = (model or mg.MLP([3, 4, 2], "tanh")).double()
    max_norm = options.pop("max_norm", None)
    optimizer = mg.GradientDescent(model.parameters(), **{"lr": 0.1, **options})
    return mg.TrainStep(model, loss or nn.MSELoss(), optimizer, max_norm=max_norm)


def layer(step: mg.TrainStep, i: int = 0) -> Any:
    return list(step.model.children())[i]


def reorder(step: mg.TrainStep) -> None:
    step.model._modules["0"] = step.model._modules.pop("0")


CHANGES: dict[str, tuple[Callable[[mg.TrainStep], Any], str]] = {
    "a hook on a parameter": (
        lambda s: layer(s).weight.register_hook(lambda g: 2 * g),
        "a hook was added to a parameter, which TrainStep would not call",
    ),
    "a later hook on a parameter": (
        lambda s: layer(s).bias.register_post_accumulate_grad_hook(lambda p: None),
        "a hook was added to a parameter, which TrainStep would not call",
    ),
    "a hook on the loss": (
        lambda s: s.loss.register_forward_hook(lambda *_: None),
        "a hook was added to the model, which TrainStep would not call",
    ),
    "forward of a layer": (
        lambda s: setattr(layer(s), "forward", lambda x: x),
        "`forward` of the model or its loss was replaced",
    ),
    "forward of the loss": (
        lambda s: setattr(s.loss, "forward", lambda x, y: x.sum()),
        "`forward` of the model or its loss was replaced",
    ),
    "class of a layer": (
        lambda s: setattr(layer(s), "__class__", nn.Linear),
        "the class of a module, or its `forward`, was replaced",
    ),
    "class of the model": (
        lambda s: setattr(s.model, "__class__", Backwards),
        "the class of a module, or its `forward`, was replaced",
    ),
    "reduction": (lambda s: setattr(s.loss, "reduction", "sum"), "`reduction` of the loss was replaced"),
    "weight": (lambda s: setattr(s.loss, "weight", torch.ones(2)), "`weight` of the loss was replaced"),
    "label_smoothing": (
        lambda s: setattr(s.loss, "label_smoothing", 0.1),
        "`label_smoothing` of the loss was replaced",
    ),
    "order": (reorder, "the layers were reordered in the model"),
}


@pytest.mark.parametrize("called", [0, 1, 3])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_it_could_not_follow(change: str, called: int) -> None:
    step = made()
    for _ in range(called):
        step(X, Y)
    before = copy.deepcopy(step.model.state_dict())
    apply, what = CHANGES[change]
    apply(step)
    sentence = (
        f"TrainStep expected the model that it was made for, but {what}. Nothing was updated. "
        "Make a new one: mg.TrainStep(model, loss, optimizer)."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(sentence)}$"):
        step(X, Y)
    for key, value in before.items():
        assert torch.equal(step.model.state_dict()[key] if change != "order" else value, value)


def test_settings_of_torch_losses() -> None:
    step = made(nn.CrossEntropyLoss())
    classes = torch.tensor([0, 1, 0, 1, 1])
    step(X, classes)
    step.loss.weight = torch.tensor([1.0, 3.0]).double()
    with pytest.raises(RuntimeError, match="`weight` of the loss was replaced"):
        step(X, classes)
    step = made(nn.BCEWithLogitsLoss())
    step(X, Y)
    step.loss.pos_weight = torch.tensor([1.0, 3.0]).double()
    with pytest.raises(RuntimeError, match="`pos_weight` of the loss was replaced"):
        step(X, Y)


def test_hooks_for_every_module_and_every_optimizer() -> None:
    step = made()
    step(X, Y)
    handle: Any = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(RuntimeError, match="a hook was added to the model"):
            step(X, Y)
        with pytest.raises(TypeError, match="got some for all modules"):
            made()
    finally:
        handle.remove()
    handle = register_optimizer_step_post_hook(lambda *_: None)
    try:
        with pytest.raises(RuntimeError, match="expected an optimizer without step hooks"):
            step(X, Y)
    finally:
        handle.remove()
    step(X, Y)


def test_forward_of_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    step = made()
    step(X, Y)
    monkeypatch.setattr(mg.Dense, "forward", lambda self, x: x @ self.weight.T)
    with pytest.raises(RuntimeError, match="the class of a module, or its `forward`, was replaced"):
        step(X, Y)


def test_a_loss_and_models_that_are_called_otherwise() -> None:
    sentence = (
        "TrainStep expected a loss that defines `value` and `gradient`, got Own with a `forward` of its own, "
        "which it would not call. Move what it does to these two, or train with autograd."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        made(Own())
    with pytest.raises(TypeError, match="^TrainStep expected Dense, .*, got Backwards"):
        made(model=Backwards(nn.Linear(3, 3), nn.Linear(3, 3)))
    with pytest.raises(TypeError, match="got Calls with a `__call__` of its own"):
        made(model=Calls([3, 2]))


def test_one_of_our_losses_with_formulas_of_its_own() -> None:
    loss: Any = mg.QuadraticLoss()
    loss.gradient = lambda a, y: 2 * (a - y)
    step = made(loss, lr=0.0)
    step(X, Y)
    loss.gradient = lambda a, y: 0 * a  # called anew at every step
    step.optimizer.param_groups[0]["lr"] = 0.1
    before = copy.deepcopy(step.model.state_dict())
    step(X, Y)
    torch.testing.assert_close(step.model.state_dict(), before, rtol=0, atol=0)
    step = made(mg.QuadraticLoss())
    step(X, Y)
    step.loss.value = lambda a, y: a.sum()  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="`value` of the loss was replaced"):
        step(X, Y)


@pytest.mark.parametrize("name", ["model", "loss", "optimizer"])
def test_what_a_step_is_made_for_stays(name: str) -> None:
    step = made()
    sentence = (
        f"TrainStep expected to keep the `{name}` that it was made for, got another. "
        "Make a new one: mg.TrainStep(model, loss, optimizer)."
    )
    with pytest.raises(AttributeError, match=f"^{re.escape(sentence)}$"):
        setattr(step, name, getattr(made(), name))


def by_autograd(step: mg.TrainStep, optimizer: Any, model: nn.Module, max_norm: Any) -> None:
    optimizer.zero_grad()
    nn.functional.mse_loss(model(X), Y).backward()
    if max_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()


def test_max_norm_may_change() -> None:
    step = made(max_norm=0.01)
    twin = copy.deepcopy(step.model)
    sgd = torch.optim.SGD(twin.parameters(), lr=0.1)
    for max_norm in (0.01, 0.01, 0.5, np.float32(0.25), None, 0.01):
        step.max_norm = max_norm  # type: ignore[assignment]
        step(X, Y)
        by_autograd(step, sgd, twin, max_norm)
    torch.testing.assert_close(step.model.state_dict(), twin.state_dict(), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="expected `max_norm` to be a number > 0 or None, got -1"):
        step.max_norm = -1
    assert step.max_norm == 0.01


def test_v_laid_elsewhere_is_the_one_that_is_used() -> None:
    step = made(momentum=0.9)
    twin = copy.deepcopy(step.model)
    sgd = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for i in range(6):
        if i == 3:
            for optimizer in (step.optimizer, sgd):
                for state in optimizer.state.values():
                    state["momentum_buffer"].data = torch.ones_like(state["momentum_buffer"])
        step(X, Y)
        by_autograd(step, sgd, twin, None)
    torch.testing.assert_close(step.model.state_dict(), twin.state_dict(), rtol=1e-12, atol=1e-12)


def test_a_model_in_shared_memory_goes_on() -> None:
    step = made(momentum=0.9)
    step(X, Y)
    twin = copy.deepcopy(step)
    step.model.share_memory()
    assert len(list(map(step, [X] * 3, [Y] * 3))) == 3
    for _ in range(3):
        twin(X, Y)
    torch.testing.assert_close(step.model.state_dict(), twin.model.state_dict(), rtol=0, atol=0)


def test_outputs_are_the_callers_to_keep() -> None:
    """A head trained on them: its graph must not see the next batch in what it saved."""
    step = made()
    step(X, Y)
    step(X, Y)
    head = nn.Linear(2, 1).double()
    outputs = step.outputs
    expected = outputs.clone()
    cost = head(outputs).square().sum()
    step(X * 2, Y)
    cost.backward()
    assert torch.equal(outputs, expected) and head.weight.grad is not None
    twin = copy.deepcopy(head)
    twin.zero_grad()
    twin(expected).square().sum().backward()
    torch.testing.assert_close(head.weight.grad, twin.weight.grad, rtol=0, atol=0)


def differentiated(z: Tensor) -> Tensor:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        return torch.autograd.grad(torch.sin(z).sum(), z)[0]


@pytest.mark.parametrize("inference", [False, True])
def test_an_activation_whose_derivative_uses_autograd(inference: bool) -> None:
    sine = mg.Activation("sine_by_autograd", value=torch.sin, derivative=differentiated)
    step = made(model=mg.MLP([3, 4, 2], sine))
    twin: Any = copy.deepcopy(step.model)
    sgd = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(4):
        with torch.inference_mode(inference):
            step(X, Y)
        z = twin[0].weight @ X.T + twin[0].bias[:, None]
        sgd.zero_grad()
        nn.functional.mse_loss(torch.sin(z).T @ twin[1].weight.T + twin[1].bias, Y).backward()
        sgd.step()
    torch.testing.assert_close(step.model.state_dict(), twin.state_dict(), rtol=1e-12, atol=1e-12)


def test_an_infinite_norm_makes_nan_only_where_autograd_does() -> None:
    model: Any = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2, bias=False))
    twin = copy.deepcopy(model)
    step = mg.TrainStep(model, nn.MSELoss(), mg.GradientDescent(model.parameters(), lr=0.1), max_norm=1.0)
    sgd = torch.optim.SGD(twin.parameters(), lr=0.1)
    x, y = torch.ones(2, 6) * torch.tensor([1, 1, 1e20, 1, 1e-3, 0]), torch.tensor([[1e20, 1.0], [1.0, 2.0]])
    with torch.no_grad():
        model[0].weight[:, 2] = twin[0].weight[:, 2] = 0
    for batch in ((x * 0 + 1, y * 0), (x, y), (x, y)):
        step(*batch)
        sgd.zero_grad()
        nn.functional.mse_loss(twin(batch[0]), batch[1]).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        sgd.step()
        torch.testing.assert_close(model.state_dict(), twin.state_dict(), equal_nan=True)
        if batch[1] is y:
            break
    assert model[0].weight.isnan().any() and not model[0].weight.isnan().all()


def test_two_threads_record_at_once_and_each_replays_its_own() -> None:
    """Each activation waits for the other thread's, so that both recordings are open at the same time."""
    barrier = threading.Barrier(2)
    factors = (1.0, -2.0)

    def step_of(i: int, meet: bool) -> mg.TrainStep:
        def value(z: Tensor) -> Tensor:
            if meet:
                barrier.wait(timeout=60)
            return factors[i] * z * z

        sigma = mg.Activation(f"square_{i}", value=value, derivative=lambda z: 2 * factors[i] * z)
        torch.manual_seed(i)  # of all threads: hence the models are made before these
        model = mg.MLP([3, 4, 4, 2], sigma).double()
        return mg.TrainStep(model, nn.MSELoss(), mg.GradientDescent(model.parameters(), lr=0.01, momentum=0.9))

    def run(step: mg.TrainStep) -> None:
        for _ in range(5):
            step(X, Y)

    alone, together = ([step_of(i, meet) for i in range(2)] for meet in (False, True))
    for step in alone:
        run(step)
    threads = [threading.Thread(target=run, args=(step,)) for step in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected, found = ([step.model.state_dict() for step in steps] for steps in (alone, together))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
