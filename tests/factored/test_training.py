"""Training with factored gradients: the same trajectories as dense ones, and nothing of the weight's size is made."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.common_optimizers import optim_inputs_func_sgd
from torch.utils._python_dispatch import TorchDispatchMode

import manualgrad as mg
from manualgrad.factored import requests
from tests.factored.nets import SIZES, assert_same_weights, batch, net, train, twin


CONFIGURATIONS = {case.desc: {"lr": 1e-3, **case.kwargs} for case in optim_inputs_func_sgd(device="cpu")}
WEIGHT_SIZES = {SIZES[0] * SIZES[1], SIZES[1] * SIZES[2]}


pytestmark = pytest.mark.usefixtures("small_weights_too")


class WeightSized(TorchDispatchMode):
    """Counts new tensors that own memory of a weight's size."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known = {t.untyped_storage().data_ptr() for t in known}
        self.made: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if type(tensor) is Tensor and tensor.numel() in WEIGHT_SIZES:
                if tensor.untyped_storage().data_ptr() not in self.known:
                    self.made.append(str(func))
        return result


@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_gradient_descent_follows_sgd(options: dict[str, Any]) -> None:
    model = net()
    other = twin(model)
    train(model, mg.GradientDescent(model.parameters(), **options), steps=50)
    assert isinstance(model[0].weight.grad, mg.FactoredGradient) and not model[0].weight.grad.is_dense
    train(other, torch.optim.SGD(other.parameters(), **options), steps=50)
    assert_same_weights(model, other)


@pytest.mark.parametrize("form", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_stock_sgd_works_on_factors(options: dict[str, Any], form: dict[str, bool]) -> None:
    if "fused" in form and isinstance(options["lr"], Tensor):
        options = {**options, "lr": options["lr"].clone()}
    model = mg.keep_factored(net())
    other = twin(model)
    optimizer = torch.optim.SGD(model.parameters(), **options, **form)
    with mg.forbid_densify() if options.get("weight_decay", 0) == 0 or "fused" in form else warnings.catch_warnings():
        train(model, optimizer, steps=50)
    assert isinstance(model[0].weight.grad, mg.FactoredGradient)
    train(other, torch.optim.SGD(other.parameters(), **options), steps=50)
    assert_same_weights(model, other)


@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9}, {"weight_decay": 0.1}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
    ids=str,
)
def test_nothing_of_the_weights_size_is_made(options: dict[str, Any], micro_batches: int, clip: bool) -> None:
    model = net()
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1, **options)
    train(model, optimizer, steps=1)  # which makes the momentum buffers
    velocities = [state["momentum_buffer"] for state in optimizer.state.values()]
    losses = [nn.functional.mse_loss(model(x), y) for x, y in (batch(3, seed=j) for j in range(micro_batches))]
    optimizer.zero_grad()
    with WeightSized([*model.parameters(), *velocities]) as count:
        for loss in losses:
            loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    assert count.made == []


def test_the_count_above_sees_a_dense_gradient() -> None:
    model = net()
    loss = nn.functional.mse_loss(model(batch()[0]), batch()[1])
    with WeightSized(list(model.parameters())) as count:
        loss.backward()
    assert count.made


@pytest.mark.parametrize("micro_batches", [1, 2, 7, 32])
def test_accumulation_also_past_the_fold(micro_batches: int) -> None:
    model = net()
    other = twin(model)
    train(model, mg.GradientDescent(model.parameters(), lr=0.1), steps=3, micro_batches=micro_batches)
    gradient = model[0].weight.grad
    assert isinstance(gradient, mg.FactoredGradient) and gradient.is_dense == (3 * micro_batches * 90 >= 2000)
    train(other, torch.optim.SGD(other.parameters(), lr=0.1), steps=3, micro_batches=micro_batches)
    assert_same_weights(model, other)


def gradient_of(layer: mg.Dense, use: Any) -> Tensor:
    mg.GradientDescent(layer.parameters(), lr=0.1, factored=False)
    layer.zero_grad()
    plain = nn.Linear(30, 30, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    use(plain).backward()
    assert plain.weight.grad is not None
    return plain.weight.grad


X = torch.linspace(-1, 1, 90, dtype=torch.float64).reshape(3, 30)
USES = {
    "once": lambda layer: layer(X).square().sum(),
    "twice": lambda layer: layer(torch.tanh(layer(X))).square().sum(),
    "also elsewhere, first": lambda layer: layer.weight.square().sum() + layer(X).square().sum(),
    "also elsewhere, last": lambda layer: layer(X).square().sum() + layer.weight.square().sum(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_weight_used_in_several_places(use: Any) -> None:
    torch.manual_seed(0)
    layer = mg.keep_factored(mg.Dense(30, 30, dtype=torch.float64))
    expected = gradient_of(layer, use)
    for i in range(1, 3):  # accumulates too
        use(layer).backward()
        ours = layer.weight.grad
        value = ours.to_dense() if isinstance(ours, mg.FactoredGradient) else ours
        torch.testing.assert_close(value, i * expected, rtol=1e-12, atol=1e-12)


def test_a_second_backward_through_a_retained_graph() -> None:
    layer = mg.keep_factored(mg.Dense(30, 30, dtype=torch.float64))
    loss = USES["once"](layer)
    expected = gradient_of(layer, USES["once"])
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(layer.weight.grad.to_dense(), 2 * expected, rtol=1e-12, atol=1e-12)


def test_autograd_grad_behaves_as_a_tensor() -> None:
    layer = mg.keep_factored(mg.Dense(30, 30, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(USES["once"](layer), layer.weight)
    expected = gradient_of(layer, USES["once"])
    assert gradient.shape == expected.shape and layer.weight.grad is None
    torch.testing.assert_close(gradient.norm(), expected.norm(), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.zeros_like(expected).add_(gradient), expected, rtol=1e-12, atol=1e-12)


def test_create_graph_gives_plain_differentiable_gradients() -> None:
    layer = mg.keep_factored(mg.Dense(30, 30, dtype=torch.float64, activation="tanh"))
    (gradient,) = torch.autograd.grad(USES["once"](layer), layer.weight, create_graph=True)
    assert type(gradient) is Tensor and gradient.requires_grad
    plain = nn.Linear(30, 30, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    (expected,) = torch.autograd.grad(torch.tanh(plain(X)).square().sum(), plain.weight, create_graph=True)
    second, expected_second = (
        torch.autograd.grad(g.square().sum(), weight)[0]
        for g, weight in ((gradient, layer.weight), (expected, plain.weight))
    )
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
    value = second.to_dense() if isinstance(second, mg.FactoredGradient) else second
    torch.testing.assert_close(value, expected_second, rtol=1e-12, atol=1e-12)


def test_hooks_see_a_tensor_that_behaves() -> None:
    layer = mg.keep_factored(mg.Dense(30, 30, dtype=torch.float64))
    expected = gradient_of(layer, USES["once"])
    seen: dict[str, float] = {}
    layer.weight.register_hook(lambda g: (seen.update(tensor=float(g.norm())), 2 * g)[1])
    layer.weight.register_post_accumulate_grad_hook(lambda p: seen.update(accumulated=float(p.grad.norm())))
    layer.register_full_backward_hook(lambda module, below, above: seen.update(module=float(below[0].norm())))
    layer(X.clone().requires_grad_()).square().sum().backward()
    norm = float(expected.norm())
    assert seen["tensor"] == pytest.approx(norm) and seen["accumulated"] == pytest.approx(2 * norm)
    assert seen["module"] > 0
    torch.testing.assert_close(layer.weight.grad.to_dense(), 2 * expected, rtol=1e-12, atol=1e-12)


def test_only_its_living_optimizer_asks() -> None:
    model = net()
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    assert requests.is_wanted(model[0].weight)
    del optimizer
    assert not requests.is_wanted(model[0].weight)
    nn.functional.mse_loss(model(batch()[0]), batch()[1]).backward()
    assert type(model[0].weight.grad) is Tensor


def test_an_input_overwritten_before_the_step_is_noticed() -> None:
    model = net()
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    before = model[0].weight.detach().clone()
    x, y = batch()
    nn.functional.mse_loss(model(x), y).backward()
    x.normal_()
    sentence = (
        r"^A factored gradient expected its factor `a` \(3, 40\) unchanged until its use \(GradientDescent\.step\(\)\), got one "
        r"changed in place since the backward pass: the gradient would be wrong\. Fill input buffers only after "
        r"optimizer\.step\(\) and zero_grad\(\), pass the layer a copy \(input\.clone\(\)\), or use "
        r"GradientDescent\(\.\.\., factored=False\)\.$"
    )
    with pytest.raises(RuntimeError, match=sentence):
        optimizer.step()
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("rows", [1, 4])
def test_bfloat16_autocast_trains_as_its_twin(rows: int) -> None:
    model = net(torch.float32)
    other = twin(model)
    losses = []
    for one, make in ((model, mg.GradientDescent), (other, torch.optim.SGD)):
        optimizer = make(one.parameters(), lr=0.1, momentum=0.9)
        for i in range(40):
            x, y = batch(rows, seed=i % 4, dtype=torch.float32)
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.mse_loss(one(x), y)
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    gradient = model[0].weight.grad
    assert isinstance(gradient, mg.FactoredGradient) and gradient.content.factors[0].delta.dtype == torch.bfloat16
    assert losses[0] == pytest.approx(losses[1], rel=1e-2, abs=1e-2)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own
def test_compiled_forward_passes_give_plain_gradients() -> None:
    model = net(torch.float32)
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x, y = batch(dtype=torch.float32)
    nn.functional.mse_loss(compiled(x), y).backward()
    assert type(model[0].weight.grad) is Tensor
    optimizer.step()
