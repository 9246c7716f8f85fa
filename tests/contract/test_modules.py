"""What PyTorch's module and training tools do with dense layers: the same as with nn.Linear."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.nn.utils import parametrizations, parametrize, prune, skip_init
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn

import manualgrad as mg
from manualgrad.autograd.switch import by_autograd


pytestmark = [  # PyTorch's own, on tracing any autograd.Function
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function'> should not be instantiated:DeprecationWarning"),
]


@pytest.mark.parametrize("name", mg.activations)
@pytest.mark.parametrize(
    "second",
    [hessian, lambda f: jacfwd(jacfwd(f)), lambda f: jacrev(jacrev(f)), lambda f: jacrev(jacfwd(f))],
    ids=["forward over reverse", "forward over forward", "reverse over reverse", "reverse over forward"],
)
def test_second_derivatives_in_every_order_of_modes(name: str, second: Any) -> None:
    layer = mg.Dense(3, 2, activation=name).double()
    loss, target = mg.QuadraticLoss(), torch.rand(2, 2).double()
    x = torch.randn(2, 3).double()
    by_hand = second(lambda x: loss(layer(x), target))(x)
    with by_autograd():
        expected = hessian(lambda x: loss(layer(x), target))(x)
    torch.testing.assert_close(by_hand, expected)


@pytest.mark.parametrize(
    "loss, target",
    [
        (mg.QuadraticLoss(), torch.rand(4, 3)),
        (mg.BinaryCrossEntropyLoss(), torch.rand(4, 3)),
        (mg.SoftmaxCrossEntropyLoss(), torch.rand(4, 3)),
        (mg.SoftmaxCrossEntropyLoss(), torch.tensor([0, 2, -100, 1])),
    ],
    ids=["quadratic", "binary", "softmax", "indices"],
)
def test_forward_mode_of_the_losses(loss: nn.Module, target: Tensor) -> None:
    z, direction = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    target = target.double() if target.is_floating_point() else target
    value, tangent, *_ = jvp(lambda z: loss(z, target), (z,), (direction,))
    torch.testing.assert_close(value, loss(z, target))
    torch.testing.assert_close(tangent, (grad(lambda z: loss(z, target))(z) * direction).sum())
    if target.is_floating_point():
        moved = torch.randn(4, 3).double()
        both = jvp(loss, (z, target), (direction, moved))[1]
        torch.testing.assert_close(both, tangent + (grad(loss, 1)(z, target) * moved).sum())


def test_per_sample_gradients() -> None:
    model, loss = mg.MLP([4, 5, 3]), mg.SoftmaxCrossEntropyLoss()
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def of_one(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, parameters, (x,)), y)

    per_sample = vmap(grad(of_one), in_dims=(None, 0, 0))(parameters, x, y)
    for i in range(6):
        expected = torch.autograd.grad(loss(model(x[i]), y[i]), list(model.parameters()))
        torch.testing.assert_close([g[i] for g in per_sample.values()], list(expected))


def test_an_ensemble_is_one_vmap() -> None:
    models = [mg.MLP([4, 5, 3], "gelu") for _ in range(3)]
    parameters, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    x = torch.randn(6, 4)
    outputs = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(outputs, torch.stack([model(x) for model in models]))


@pytest.mark.parametrize(
    "parametrization",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal],
    ids=lambda function: function.__name__,
)
def test_parametrizations(parametrization: Any) -> None:
    """A weight that is computed gets a dense gradient, also from an optimizer that asked for factors."""
    ours, theirs = mg.Dense(200, 200, activation="tanh"), nn.Linear(200, 200)
    theirs.load_state_dict(ours.state_dict())
    for layer in (ours, theirs):
        torch.manual_seed(1)
        parametrization(layer)
    optimizers = mg.GradientDescent(ours.parameters(), lr=0.1), torch.optim.SGD(theirs.parameters(), lr=0.1)
    x = torch.randn(3, 200)
    for _ in range(2):
        for optimizer, y in zip(optimizers, (ours(x), torch.tanh(theirs(x))), strict=True):
            optimizer.zero_grad()
            y.square().sum().backward()
            optimizer.step()
    for p, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert type(p.grad) is Tensor
        torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-5)
    parametrize.remove_parametrizations(ours, "weight")
    assert type(ours) is mg.Dense


def test_pruning_and_its_removal() -> None:
    layer: Any = mg.Dense(4, 3)
    prune.l1_unstructured(layer, "weight", amount=0.5)
    layer(torch.randn(2, 4)).sum().backward()
    kept = layer.weight_mask.bool()
    assert isinstance(layer.weight_orig.grad, Tensor)
    assert not layer.weight_orig.grad[~kept].any() and layer.weight_orig.grad[kept].all()
    prune.remove(layer, "weight")
    assert isinstance(layer.weight, nn.Parameter)


def test_made_without_memory_and_filled_later() -> None:
    skipped = skip_init(mg.Dense, 4, 3, activation="relu")
    assert type(skipped) is mg.Dense and skipped.weight.shape == (3, 4) and not skipped.weight.is_meta
    with torch.device("meta"):
        model = mg.MLP([4, 5, 3])
    assert model(torch.empty(2, 4, device="meta")).shape == (2, 3)
    trained = mg.MLP([4, 5, 3])
    model.to_empty(device="cpu").load_state_dict(trained.state_dict())
    x = torch.randn(2, 4)
    assert torch.equal(model(x), trained(x))
    with torch.device("meta"):
        assigned = mg.MLP([4, 5, 3])
    assigned.load_state_dict(trained.state_dict(), assign=True)
    assert torch.equal(assigned(x), trained(x))


def test_averaged_models() -> None:
    model = nn.Sequential(mg.Dense(4, 5, activation="relu"), nn.BatchNorm1d(5), mg.Dense(5, 3))
    averaged = AveragedModel(model)
    optimizer = mg.GradientDescent(model.parameters(), lr=0.5)
    schedule = SWALR(optimizer, swa_lr=0.1)
    x, seen = torch.randn(8, 4), []
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        averaged.update_parameters(model)
        schedule.step()
        seen.append(copy.deepcopy([p.detach() for p in model.parameters()]))
    for p, *steps in zip(averaged.parameters(), *seen, strict=True):
        torch.testing.assert_close(p.detach(), torch.stack(steps).mean(0))
    update_bn([x], averaged)
    assert averaged(x).isfinite().all()


@pytest.mark.parametrize("width", [8, 256], ids=["dense", "factored"])
def test_mixed_precision_with_a_scaler(width: int) -> None:
    """The same as nn.Linear and SGD, the skipped step after an overflow included."""
    torch.manual_seed(1)
    theirs = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    ours = mg.convert(copy.deepcopy(theirs))
    x, y = torch.randn(4, width), torch.randn(4, width)
    for model, optimizer in (
        (ours, mg.GradientDescent(ours.parameters(), lr=0.1)),
        (theirs, torch.optim.SGD(theirs.parameters(), lr=0.1)),
    ):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        for step in range(4):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.mse_loss(model(x).float(), y)
            scaler.scale(loss * (float("inf") if step == 1 else 1.0)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 2.0**10
    for p, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=2e-2, atol=2e-4)
