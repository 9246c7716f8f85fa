"""trace(): every number of a training step, found without changing anything."""

import copy
import gc
import json
import random
import re
import weakref
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import manualgrad as mg
from manualgrad.autograd.switch import by_autograd
from tests.xor import INPUTS, TARGETS, hand_numbers, xor_net, xor_trace


X, Y = torch.linspace(-1, 1, 24).view(8, 3), torch.linspace(0, 1, 16).view(8, 2)


def step(model: nn.Module, loss: Any, inputs: Tensor, targets: Tensor, optimizer: Any) -> None:
    """A real training step, as a user writes it."""
    optimizer.zero_grad()
    loss(model(inputs), targets).backward()
    optimizer.step()


def assert_is_the_next_step(
    model: nn.Module, loss: Any, inputs: Tensor, targets: Tensor, optimizer: Any = None, step_optimizer: Any = None
) -> mg.Trace:
    """Trace, then step for real: the same bits. Returns the trace."""
    trace = mg.trace(model, loss, inputs, targets, optimizer)
    before = {name: p.clone() for name, p in model.named_parameters()}
    step(model, loss, inputs, targets, optimizer or step_optimizer or mg.GradientDescent(model.parameters(), lr=0.1))
    layers: dict[str, Any] = dict(model.named_modules())
    for traced in trace.layers:
        layer = layers[traced.name]
        assert torch.equal(traced.weight_after, layer.weight)
        assert layer.bias is None or (traced.bias_after is not None and torch.equal(traced.bias_after, layer.bias))
        for name in ("weight", "bias"):
            if f"{traced.name}.{name}" in before:
                assert torch.equal(getattr(traced, f"{name}_before"), before[f"{traced.name}.{name}"])
        assert torch.equal(traced.delta, traced.delta) and traced.delta.shape == traced.z.shape == traced.a.shape
    return trace


def test_every_number_of_xor_is_the_hand_s() -> None:
    model = xor_net()
    trace = xor_trace(model)
    *by_hand, whole = hand_numbers(model)
    assert len(trace.layers) == len(by_hand) == 2
    for layer, expected in zip(trace.layers, by_hand, strict=True):
        for name, numbers in expected.items():
            torch.testing.assert_close(
                getattr(layer, name), torch.tensor(numbers, dtype=torch.float64), rtol=1e-13, atol=1e-17, msg=name
            )
    for name, numbers in whole.items():
        torch.testing.assert_close(getattr(trace, name), torch.tensor(numbers, dtype=torch.float64), rtol=1e-14, atol=0)
    assert torch.equal(trace.inputs, INPUTS) and torch.equal(trace.targets, TARGETS)
    assert [(layer.name, layer.call, layer.activation, layer.trained) for layer in trace.layers] == [
        ("0", 0, "sigmoid", True),
        ("1", 0, "sigmoid", True),
    ]
    assert (trace.loss_name, trace.optimizer, trace.lr) == ("QuadraticLoss", "GradientDescent(lr=0.5)", 0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lr", [0.5, 0.1, 3.0])
def test_the_update_is_gradient_descent_to_the_last_bit(dtype: torch.dtype, lr: float) -> None:
    """w_after = w_before - eta delta a^T, by the optimizer's own rounding: one multiply-add."""
    model = mg.MLP([3, 5, 2], "tanh", dtype=dtype)
    optimizer = mg.GradientDescent(model.parameters(), lr=lr)
    trace = assert_is_the_next_step(model, mg.QuadraticLoss(), X.to(dtype), Y.to(dtype), optimizer)
    for layer in trace.layers:
        assert torch.equal(layer.grad_weight, layer.delta.T @ layer.inputs)
        assert torch.equal(layer.weight_after, layer.weight_before.sub(layer.delta.T @ layer.inputs, alpha=lr))
        assert layer.bias_before is not None and layer.bias_after is not None and layer.grad_bias is not None
        assert torch.equal(layer.bias_after, layer.bias_before.sub(layer.delta.sum(0), alpha=lr))
        assert layer.delta.dtype == layer.z.dtype == layer.weight_after.dtype == dtype


def test_by_default_plain_gradient_descent_with_lr_a_tenth() -> None:
    model = mg.MLP([3, 5, 2])
    trace = assert_is_the_next_step(model, mg.QuadraticLoss(), X, Y)
    assert (trace.optimizer, trace.lr) == ("GradientDescent(lr=0.1)", 0.1)


@pytest.mark.parametrize(
    ("make", "described", "lr"),
    [
        (lambda p: mg.GradientDescent(p, lr=0.1, momentum=0.9), "GradientDescent(lr=0.1, momentum=0.9)", 0.1),
        (
            lambda p: torch.optim.SGD(p, lr=1, momentum=0.9, nesterov=True),
            "SGD(lr=1, momentum=0.9, nesterov=True)",
            1.0,
        ),
        (lambda p: torch.optim.SGD(p, lr=0.1, foreach=True), "SGD(lr=0.1, foreach=True)", 0.1),
        (lambda p: torch.optim.Adam(p), "Adam(lr=0.001)", 0.001),
        (
            lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), weight_decay=0.1),
            "AdamW(lr=0.01, weight_decay=0.1)",
            0.01,
        ),
        (lambda p: torch.optim.RMSprop(p, momentum=0.5), "RMSprop(lr=0.01, momentum=0.5)", 0.01),
        (lambda p: torch.optim.Adagrad(p), "Adagrad(lr=0.01)", 0.01),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_step_of_any_optimizer_with_its_state(make: Callable[[Any], Any], described: str, lr: float) -> None:
    model, loss = mg.MLP([3, 5, 2], "tanh"), mg.QuadraticLoss()
    optimizer = make(model.parameters())
    for _ in range(3):  # momenta are no longer those of a first step
        step(model, loss, X, Y, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    trace = mg.trace(model, loss, X, Y, optimizer)
    torch.testing.assert_close(optimizer.state_dict(), state, rtol=0, atol=0)
    assert (trace.optimizer, trace.lr) == (described, pytest.approx(lr))
    assert_is_the_next_step(model, loss, X, Y, optimizer)


def test_param_groups_of_their_own() -> None:
    model = mg.MLP([3, 5, 4, 2], "tanh")
    layers: list[Any] = list(model)
    groups = [{"params": layers[0].parameters(), "lr": 0.5}, {"params": layers[2].parameters(), "momentum": 0.9}]
    trace = assert_is_the_next_step(model, mg.QuadraticLoss(), X, Y, mg.GradientDescent(groups, lr=0.1))
    assert (trace.optimizer, trace.lr) == ("GradientDescent(lr=0.1 or 0.5, momentum=0 or 0.9)", None)
    assert [layer.trained for layer in trace.layers] == [True, False, True]
    assert torch.equal(trace.layers[1].weight_before, trace.layers[1].weight_after)
    assert trace.layers[1].grad_weight.abs().max() > 0


@pytest.mark.parametrize("by", ["GradientDescent", "keep_factored"])
def test_a_wide_weight_is_updated_from_its_factors_as_in_training(by: str) -> None:
    model = mg.MLP([256, 256, 2], "relu")
    inputs, targets = torch.randn(4, 256), torch.randn(4, 2)
    if by == "GradientDescent":
        optimizer: Any = mg.GradientDescent(model.parameters(), lr=0.1)
    else:
        optimizer = torch.optim.SGD(mg.keep_factored(model).parameters(), lr=0.1)
    layer = assert_is_the_next_step(model, mg.QuadraticLoss(), inputs, targets, optimizer).layers[0]
    assert torch.equal(layer.grad_weight, layer.delta.T @ layer.inputs)
    from_factors = layer.weight_before.addmm(layer.delta.T, layer.inputs, alpha=-0.1)
    assert torch.equal(layer.weight_after, from_factors)
    assert not torch.equal(
        layer.weight_after, layer.weight_before.sub(layer.grad_weight, alpha=0.1)
    )  # rounds otherwise


def test_by_default_a_wide_weight_is_updated_by_the_gradient_that_is_shown() -> None:
    model = mg.MLP([256, 256, 2], "relu")
    mine = mg.GradientDescent(model.parameters(), lr=0.1)  # wants factors, but is not asked
    layer = mg.trace(model, mg.QuadraticLoss(), torch.randn(4, 256), torch.randn(4, 2)).layers[0]
    assert torch.equal(layer.weight_after, layer.weight_before.sub(layer.grad_weight, alpha=0.1))
    assert mine.factored


class Tower(nn.Module):
    """Dropout and batch normalisation between, and one layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = mg.Dense(3, 6, activation="gelu")
        self.between = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.4))
        self.again = mg.Dense(6, 6, activation="tanh")
        self.last = mg.Dense(6, 2, bias=False)
        self.unused = mg.Dense(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.between(self.first(x))
        hidden = hidden + self.again(hidden)
        return self.last(self.again(hidden))


def test_dropout_batch_normalisation_and_a_layer_used_twice() -> None:
    model: Any = Tower()
    trace = assert_is_the_next_step(model, mg.QuadraticLoss(), X, Y)
    assert [(layer.name, layer.call) for layer in trace.layers] == [
        ("first", 0),
        ("again", 0),
        ("again", 1),
        ("last", 0),
    ]
    first, once, twice, last = trace.layers
    assert torch.equal(once.grad_weight + twice.grad_weight, model.again.weight.grad)  # each shows its own
    assert torch.equal(once.weight_after, twice.weight_after)
    assert (once.inputs == 0).any() and not torch.equal(first.a, once.inputs)  # what dropout has left of it
    assert last.grad_bias is last.bias_before is last.bias_after is None


def assert_deltas_are_autograd_s(model: nn.Module, trace: mg.Trace, loss: Any, inputs: Tensor, targets: Tensor) -> None:
    """dC/dz of each layer against autograd's, by a zero that is added to z."""
    zeros = [torch.zeros_like(layer.z, requires_grad=True) for layer in trace.layers]
    waiting = list(zeros)
    with by_autograd():
        twin = copy.deepcopy(model)
        for module in twin.modules():
            if isinstance(module, mg.Dense):
                module.forward = shifted(module, waiting)  # type: ignore[method-assign, assignment]
        gradients = torch.autograd.grad(loss(twin(inputs), targets), zeros, allow_unused=True)
    for layer, gradient in zip(trace.layers, gradients, strict=True):
        expected = torch.zeros_like(layer.z) if gradient is None else gradient
        torch.testing.assert_close(layer.delta, expected, rtol=1e-10, atol=1e-14)


def shifted(layer: mg.Dense, waiting: list[Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: layer.activation.value(nn.functional.linear(x, layer.weight, layer.bias) + waiting.pop(0))


@pytest.mark.parametrize("activation", mg.activations)
def test_delta_is_the_derivative_by_z_of_every_activation(activation: str) -> None:
    model = mg.MLP([3, 5, 4, 2], activation, "softplus", dtype=torch.float64)
    inputs, targets = X.double(), Y.double()
    trace = mg.trace(model, mg.QuadraticLoss(), inputs, targets)
    assert_deltas_are_autograd_s(model, trace, mg.QuadraticLoss(), inputs, targets)
    for layer in trace.layers:
        torch.testing.assert_close(layer.delta, layer.cost_gradient * layer.derivative, rtol=1e-14, atol=0)
        torch.testing.assert_close(layer.a, mg.activations[layer.activation].value(layer.z), rtol=0, atol=0)


def test_delta_is_the_derivative_by_z_in_a_tower() -> None:
    model = Tower().double().eval()
    trace = mg.trace(model, nn.MSELoss(), X.double(), Y.double())
    assert_deltas_are_autograd_s(model, trace, nn.MSELoss(), X.double(), Y.double())


def test_an_activation_of_the_user_s() -> None:
    cube = mg.Activation("cube of trace", value=lambda z: z**3, derivative=lambda z: 3 * z**2)
    trace = assert_is_the_next_step(mg.MLP([3, 4, 2], cube), mg.QuadraticLoss(), X, Y)
    assert trace.layers[0].activation == "cube of trace"
    torch.testing.assert_close(trace.layers[0].derivative, 3 * trace.layers[0].z ** 2)


def test_a_converted_transformer_layer() -> None:
    model = mg.convert(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True))
    inputs, targets = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    trace = assert_is_the_next_step(model, nn.MSELoss(), inputs, targets)
    assert [layer.name for layer in trace.layers] == ["linear1", "linear2"]
    assert trace.layers[0].z.shape == (2, 5, 16)
    assert torch.equal(
        trace.layers[0].grad_weight, trace.layers[0].delta.flatten(0, 1).T @ trace.layers[0].inputs.flatten(0, 1)
    )


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 4, 3), (2, 1, 2, 3), (0, 3)], ids=str)
def test_any_number_of_axes(shape: tuple[int, ...]) -> None:
    inputs, targets = torch.randn(shape), torch.randn(*shape[:-1], 2)
    model = mg.MLP([3, 5, 2], "tanh")
    trace = assert_is_the_next_step(model, lambda a, y: ((a - y) ** 2).sum(), inputs, targets)
    assert trace.layers[0].z.shape == (*shape[:-1], 5)
    assert trace.layers[0].inputs.shape == shape


def test_the_model_itself_is_the_layer() -> None:
    trace = assert_is_the_next_step(mg.Dense(3, 2), nn.MSELoss(), X, Y)
    assert trace.layers[0].name == ""


def test_integers_go_in_where_the_model_embeds_them() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), mg.Dense(3, 2))
    trace = assert_is_the_next_step(model, mg.QuadraticLoss(), torch.tensor([[0, 4], [1, 1]]), torch.zeros(2, 2, 2))
    assert trace.inputs.dtype == torch.int64


def test_complex_numbers() -> None:
    model = mg.MLP([3, 4, 2], "tanh", dtype=torch.complex128)
    trace = assert_is_the_next_step(model, lambda a, y: (a - y).abs().square().mean(), X.to(torch.complex128), Y)
    assert json.loads(trace.to_json())["layers"][0]["z"][0][0] == [
        trace.layers[0].z[0, 0].real,
        trace.layers[0].z[0, 0].imag,
    ]


def test_under_autocast() -> None:
    model = mg.MLP([3, 5, 2], "tanh")
    with torch.autocast("cpu", torch.bfloat16):
        trace = assert_is_the_next_step(model, mg.QuadraticLoss(), X, Y)
    layer = trace.layers[0]
    assert layer.z.dtype == layer.a.dtype == layer.delta.dtype == torch.bfloat16
    assert layer.grad_weight.dtype == layer.weight_after.dtype == torch.float32


def test_frozen_layers_show_the_error_that_reaches_them() -> None:
    model = mg.MLP([3, 5, 4, 2], "tanh")
    layers: list[Any] = list(model)
    thawed = [layer.delta for layer in mg.trace(model, mg.QuadraticLoss(), X, Y).layers]
    layers[0].requires_grad_(False)
    layers[1].weight.requires_grad_(False)
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1, weight_decay=0.5)  # which would shrink them too
    trace = assert_is_the_next_step(model, mg.QuadraticLoss(), X, Y, optimizer)
    assert [layer.trained for layer in trace.layers] == [False, False, True]
    assert all(map(torch.equal, [layer.delta for layer in trace.layers], thawed))
    assert [p.requires_grad for p in model.parameters()] == [False, False, False, True, True, True]


def test_what_the_loss_does_not_reach_has_no_error() -> None:
    class Stopped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut, self.aside, self.used = mg.Dense(3, 3), mg.Dense(3, 3), mg.Dense(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.cut(x)
            self.aside(x)
            return self.used(x)

    trace = assert_is_the_next_step(Stopped(), nn.MSELoss(), X, Y)
    assert [(layer.name, layer.trained, bool(layer.delta.any())) for layer in trace.layers] == [
        ("cut", False, False),
        ("aside", False, False),
        ("used", True, True),
    ]


def test_an_activation_in_place_behind_the_layer_does_not_write_into_the_trace() -> None:
    model = nn.Sequential(mg.Dense(3, 6), nn.ReLU(inplace=True), mg.Dense(6, 2))
    trace = assert_is_the_next_step(model, nn.MSELoss(), X, Y)
    assert (trace.layers[0].a < 0).any() and torch.equal(trace.layers[0].a, trace.layers[0].z)


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(
        mg.Dense(3, 4, activation="tanh"), mg.Dense(4, 4, activation="tanh"), mg.Dense(4, 4), mg.Dense(4, 2)
    )
    layers: list[Any] = list(model)
    layers[2].weight = layers[1].weight
    trace = assert_is_the_next_step(model, nn.MSELoss(), X, Y)
    assert torch.equal(trace.layers[1].weight_after, trace.layers[2].weight_after)
    assert torch.equal(trace.layers[1].grad_weight + trace.layers[2].grad_weight, layers[1].weight.grad)


@pytest.mark.parametrize("parametrization", [parametrizations.spectral_norm, parametrizations.weight_norm])
def test_a_parametrized_weight_is_shown_as_it_is_used(parametrization: Callable[..., Any]) -> None:
    """Reading a spectrally normalised weight changes it: the trace must not read it once more than training does."""
    model: Any = nn.Sequential(parametrization(mg.Dense(3, 4, activation="tanh")), mg.Dense(4, 2))
    trace = mg.trace(model, nn.MSELoss(), X, Y)
    used = []
    twin = copy.deepcopy(model)
    twin[0].register_forward_hook(lambda layer, args, output: used.append(output.detach()))
    twin(X)
    assert torch.equal(trace.layers[0].a, used[0])
    torch.testing.assert_close(trace.layers[0].z, X @ trace.layers[0].weight_before.T + twin[0].bias)
    assert trace.layers[0].trained and not torch.equal(trace.layers[0].weight_before, trace.layers[0].weight_after)


def test_a_lazy_layer_stays_lazy() -> None:
    model = nn.Sequential(mg.LazyDense(4, activation="relu"), mg.LazyDense(2))
    trace = mg.trace(model, nn.MSELoss(), X, Y)
    assert trace.layers[0].weight_before.shape == (4, 3)
    assert all(isinstance(layer, mg.LazyDense) for layer in model)


@pytest.mark.filterwarnings(
    "ignore:.*autograd.function.Function'> should not be instantiated:DeprecationWarning"
)  # PyTorch's own
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("where", ["wrapped", "in place", "inside"])
def test_a_compiled_model_is_traced_as_it_was_written(where: str) -> None:
    model: Any = nn.Sequential(mg.MLP([3, 5, 2], "tanh"))
    expected = mg.trace(model, nn.MSELoss(), X, Y)
    compiled: Any = torch.compile(model, backend="eager") if where == "wrapped" else model
    if where == "in place":
        model.compile(backend="eager")
    if where == "inside":
        model[0] = torch.compile(model[0], backend="eager")
    compiled(X).sum().backward()  # its code exists
    trace = mg.trace(compiled, nn.MSELoss(), X, Y)
    assert trace.to_dict() == expected.to_dict()


def test_checkpointed_layers() -> None:
    class Checkpointed(nn.Module):
        def __init__(self, reentrant: bool) -> None:
            super().__init__()
            self.net, self.reentrant = mg.MLP([3, 5, 2], "tanh"), reentrant

        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.net, x.requires_grad_(), use_reentrant=self.reentrant)

    model = Checkpointed(reentrant=False)
    trace = assert_is_the_next_step(model, nn.MSELoss(), X.clone(), Y)
    assert len(trace.layers) == 2 and trace.layers[0].delta.any()
    message = (
        "trace expected the forward pass to be the one that is differentiated, got a part of it computed anew by "
        "torch.utils.checkpoint. Call checkpoint with use_reentrant=False."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        mg.trace(Checkpointed(reentrant=True), nn.MSELoss(), X, Y)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_where_gradients_are_off(mode: Any) -> None:
    model = mg.MLP([3, 5, 2], "tanh")
    expected = mg.trace(model, nn.MSELoss(), X, Y).to_dict()
    with mode():
        trace = mg.trace(model, nn.MSELoss(), X.clone(), Y.clone())
    assert trace.to_dict() == expected
    assert not any(x.is_inference() for x in vars(trace.layers[0]).values() if isinstance(x, Tensor))


def everything(model: nn.Module, optimizer: Any) -> list[Any]:
    """All that a step could change, for comparison by ==."""
    tensors = [*model.parameters(), *model.buffers()]
    hooks = [len(h) for m in model.modules() for name, h in vars(m).items() if name.endswith("_hooks")]
    return [
        [(id(x), x._version, x.tolist(), x.requires_grad) for x in tensors],
        [(id(p.grad), None if p.grad is None else p.grad.tolist()) for p in model.parameters()],
        [(type(m), m.training, "forward" in vars(m)) for m in model.modules()],
        hooks,
        repr(optimizer.state_dict()),
        torch.get_rng_state().tolist(),
        random.getstate(),
        [str(x) for x in numpy.random.get_state()],
    ]


class Noisy(Tower):
    """Draws from Python's and NumPy's random numbers too, and can fail at the end."""

    fails = False

    def forward(self, x: Tensor) -> Tensor:
        outputs = super().forward(x + random.random() + numpy.random.rand())
        if self.fails:
            raise ArithmeticError("the model fails")
        return outputs


def failing_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    raise ArithmeticError("the loss fails")


def failing_backward(outputs: Tensor, targets: Tensor) -> Tensor:
    outputs.register_hook(lambda gradient: 1 / 0)
    return outputs.mean()


@pytest.mark.parametrize("fails", [None, "model", failing_loss, failing_backward, lambda a, y: a.tolist()])
def test_nothing_is_changed_also_when_something_fails(fails: Any) -> None:
    model, loss = Noisy(), nn.MSELoss()
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1, momentum=0.9)
    step(model, loss, X, Y, optimizer)
    seen: list[Any] = []
    model.first.register_forward_hook(lambda module, args, output: seen.append(output))
    model.fails = fails == "model"
    before, inputs = everything(model, optimizer), X.clone()
    if fails is None:
        mg.trace(model, loss, inputs, Y, optimizer)
    else:
        with pytest.raises((ArithmeticError, ValueError)):
            mg.trace(model, fails if callable(fails) else loss, inputs, Y, optimizer)
    assert everything(model, optimizer) == before
    assert torch.equal(inputs, X) and not inputs.requires_grad


def test_a_loss_with_parameters_and_memory() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))
            self.calls = nn.Buffer(torch.zeros(()))

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            self.calls.add_(1)
            return (self.scale * (outputs - targets) ** 2).mean()

    model, loss = mg.MLP([3, 5, 2], "tanh"), Weighted()
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
    for given, name in ((loss, "Weighted"), (loss.forward, "forward")):
        trace = mg.trace(model, given, X, Y, optimizer)
        assert trace.loss_name == name
    assert loss.calls == 0 and loss.scale.grad is None
    assert_is_the_next_step(model, loss, X, Y, optimizer)


def test_a_penalty_on_the_model_s_own_weights_is_refused_and_leaves_no_gradient() -> None:
    model = mg.MLP([3, 5, 2], "tanh")
    message = (
        "trace expected a loss of the outputs and targets alone, got one that reads parameters of the model itself, where the "
        "trace has copies. Take a penalty on weights out of it, for example in favour of weight_decay."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        mg.trace(model, lambda a, y: (a - y).square().mean() + model[0].weight.square().sum(), X, Y)
    assert all(p.grad is None for p in model.parameters())


def test_another_tensor_that_the_loss_reads_keeps_its_gradient() -> None:
    scale = torch.ones(2, requires_grad=True)
    scale.grad = before = torch.ones(2)
    trace = mg.trace(mg.MLP([3, 5, 2], "tanh"), lambda a, y: (scale * (a - y)).square().mean(), X, Y)
    assert scale.grad is before and before.tolist() == [1, 1]
    assert all(layer.trained and layer.delta.any() for layer in trace.layers)


def test_the_trace_does_not_follow_what_happens_later() -> None:
    model, inputs = mg.MLP([3, 5, 2], "tanh"), X.clone()
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    trace = mg.trace(model, nn.MSELoss(), inputs, Y, optimizer)
    before = trace.to_dict()
    inputs.zero_()
    step(model, nn.MSELoss(), X, Y, optimizer)
    assert trace.to_dict() == before
    tensors = [x for layer in trace.layers for x in vars(layer).values() if isinstance(x, Tensor)]
    assert not any(x.requires_grad or x.grad_fn for x in tensors)


def test_nan_goes_through() -> None:
    inputs = X.clone()
    inputs[0, 0] = float("nan")
    trace = assert_finds_nan(inputs)
    written = json.loads(trace.to_json())
    assert written["loss"] is None and written["layers"][0]["z"][0][0] is None
    assert written["layers"][0]["z"][1][0] == pytest.approx(trace.layers[0].z[1, 0].item())


def assert_finds_nan(inputs: Tensor) -> mg.Trace:
    trace = mg.trace(mg.MLP([3, 4, 2], "tanh"), nn.MSELoss(), inputs, Y)
    assert trace.loss.isnan() and trace.layers[0].z[0].isnan().all() and trace.layers[0].z[1:].isfinite().all()
    assert trace.layers[0].weight_after.isnan().any()
    return trace


def test_as_plain_values() -> None:
    trace = xor_trace(xor_net())
    values = trace.to_dict()
    assert json.loads(trace.to_json()) == values
    assert set(values) == {field for field in vars(trace)}
    assert torch.equal(torch.tensor(values["layers"][1]["delta"], dtype=torch.float64), trace.layers[1].delta)
    assert values["loss"] == trace.loss.item() and values["lr"] == 0.5
    assert all(set(layer) == set(vars(trace.layers[0])) for layer in values["layers"])


def test_no_two_fields_share_memory() -> None:
    trace = mg.trace(nn.Sequential(mg.Dense(3, 2)), mg.QuadraticLoss(), X, Y)
    fields = [*vars(trace).values(), *vars(trace.layers[0]).values()]
    places = [x.untyped_storage().data_ptr() for x in fields if isinstance(x, Tensor)]
    assert len(set(places)) == len(places)


class Remembering(nn.Module):
    """Keeps its outputs, history and all, which copy.deepcopy refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mg.Dense(3, 2)
        self.last: Any = None
        self.all: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.layer(x)
        self.all.append(self.last)
        return self.last


@pytest.mark.parametrize("examine", [mg.trace, mg.compare])
def test_a_model_that_keeps_its_last_output(examine: Callable[..., Any]) -> None:
    model = Remembering()
    last = model(X)
    examine(model, nn.MSELoss(), X, Y)
    assert model.last is model.all[0] is last and len(model.all) == 1 and last.grad_fn is not None
    assert_is_the_next_step(model, nn.MSELoss(), X, Y)


def test_the_copy_is_gone_when_trace_returns() -> None:
    class Remembered(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            copies.append(weakref.ref(self))
            return x

    copies: list[Any] = []
    model = nn.Sequential(mg.MLP([3, 4, 2], "tanh"), Remembered())
    gc.disable()
    try:
        mg.trace(model, nn.MSELoss(), X, Y)
        assert len(copies) == 1 and copies[0]() is None
    finally:
        gc.enable()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    model = Tower().cuda()
    trace = assert_is_the_next_step(model, mg.QuadraticLoss(), X.cuda(), Y.cuda())
    assert trace.layers[0].z.is_cuda and trace.outputs.is_cuda
    assert json.loads(trace.to_json()) == trace.to_dict() and "4. UPDATE" in str(trace)


class Doubled(mg.Dense):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Idle(nn.Module):
    def __init__(self, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = mg.Dense(3, 2) if layer is None else layer

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.layer.weight.T  # type: ignore[operator]


def returning(function: Callable[[Tensor], Any]) -> nn.Module:
    class Returning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = mg.Dense(3, 2)

        def forward(self, x: Tensor) -> Any:
            return function(self.layer(x))

    return Returning()


DENSE, MSE = mg.Dense(3, 2), nn.MSELoss()
SEVEN = nn.Sequential(*(nn.Linear(3, 3) for _ in range(7)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (torch.sin, MSE, X, Y),
            TypeError,
            "trace expected `model` to be a torch.nn.Module, got builtin_function_or_method. Pass the model itself.",
        ),
        (
            (X, MSE, DENSE, Y),
            TypeError,
            "trace expected `model` to be a torch.nn.Module, got Tensor. "
            "The order is trace(model, loss, inputs, targets).",
        ),
        (
            (DENSE, MSE, torch.sin, Y),
            TypeError,
            "trace expected `inputs` to be a torch.Tensor, got builtin_function_or_method. "
            "The order is trace(model, loss, inputs, targets).",
        ),
        (
            (MSE, DENSE, X, Y),
            ValueError,
            "trace expected a model with Dense layers, got MSELoss with none. "
            "The order is trace(model, loss, inputs, targets).",
        ),
        (
            (DENSE, MSE, X.tolist(), Y),
            TypeError,
            "trace expected `inputs` to be a torch.Tensor, got list. "
            "Convert it with torch.as_tensor(inputs), or wrap the model in a module of one tensor.",
        ),
        (
            (DENSE, MSE, X, (Y, Y)),
            TypeError,
            "trace expected `targets` to be a torch.Tensor, got tuple. "
            "Convert it with torch.as_tensor(targets), or let the loss find the rest.",
        ),
        (
            (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), MSE, X, Y),
            ValueError,
            "trace expected a model with Dense layers, got Sequential with none. "
            "Call mg.convert(model) first. Its linear layers: '0', '2'.",
        ),
        (
            (SEVEN, MSE, X, Y),
            ValueError,
            "trace expected a model with Dense layers, got Sequential with none. "
            "Call mg.convert(model) first. Its linear layers: '0', '1', '2', '3', '4' and 2 more.",
        ),
        (
            (nn.Linear(3, 2), MSE, X, Y),
            ValueError,
            "trace expected a model with Dense layers, got Linear with none. "
            "Call mg.convert(model) first. Its linear layers: the model itself.",
        ),
        (
            (nn.Conv2d(1, 1, 1), MSE, X, Y),
            ValueError,
            "trace expected a model with Dense layers, got Conv2d with none. It has no linear layers either.",
        ),
        (
            (Idle(), MSE, X, Y),
            ValueError,
            "trace expected the model to call one of its Dense layers, got a forward pass that called none of 'layer'. "
            "Call the layers, not F.linear with their weights.",
        ),
        (
            (Idle(Doubled(3, 2)), MSE, X, Y),
            ValueError,
            "trace expected layer 'layer' to compute what a Dense computes, got Doubled with a forward of its own. "
            "Keep the Dense as it is, inside a module that does the rest.",
        ),
        (
            (returning(lambda a: (a, a)), MSE, X, Y),
            TypeError,
            "trace expected the model to return a tensor, got tuple. "
            "Wrap it in a module that returns the tensor which the loss takes.",
        ),
        (
            (returning(Tensor.detach), MSE, X, Y),
            ValueError,
            "trace expected a loss that depends on a parameter of the model, got one that depends on none. "
            "Do not detach the outputs.",
        ),
        (
            (DENSE, nn.MSELoss(reduction="none"), X, Y),
            ValueError,
            "trace expected the loss to be a real 0-dimensional tensor, got torch.float32 of shape (8, 2). "
            "Average it, for example with .mean().",
        ),
        (
            (DENSE, lambda a, y: 0.5, X, Y),
            ValueError,
            "trace expected the loss to be a real 0-dimensional tensor, got float. Average it, for example with .mean().",
        ),
        (
            (DENSE, MSE, X, Y, torch.optim.LBFGS(DENSE.parameters())),
            ValueError,
            "trace expected an optimizer that makes its step from one gradient, got LBFGS, which computes the loss anew "
            "as often as it likes. Pass for example mg.GradientDescent(model.parameters(), lr=0.1).",
        ),
        (
            (DENSE, MSE, X, Y, torch.optim.SGD(mg.Dense(3, 2).parameters(), lr=0.1)),
            ValueError,
            "trace expected an optimizer of the model's parameters, got SGD with none of them. "
            "Make it from this model: SGD(model.parameters(), ...).",
        ),
        (
            (DENSE, MSE, X, Y, 0.1),
            TypeError,
            "trace expected `optimizer` to be a torch.optim.Optimizer, got float. "
            "Pass for example mg.GradientDescent(model.parameters(), lr=0.1).",
        ),
    ],
    ids=lambda value: re.sub(r"\W+", "-", value[:90]) if isinstance(value, str) else "",
)
def test_what_cannot_be_traced_is_said_in_full(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        mg.trace(*arguments)


def test_inside_by_autograd_there_is_nothing_to_listen_to() -> None:
    message = (
        "trace expected layer '' to be differentiated by its own backward pass, got AddmmBackward0. "
        "Call trace outside of by_autograd(), and the layer outside of torch.func and torch.jit."
    )
    with by_autograd(), pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        mg.trace(mg.Dense(3, 2), nn.MSELoss(), X, Y)
