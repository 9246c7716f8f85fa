"""trace() of all kinds of models: every delta is autograd's, every step the next real one."""

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import manualgrad as mg
from manualgrad.autograd.switch import by_autograd
from tests.tracing.traced import Tower, X, Y, assert_is_the_next_step


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
