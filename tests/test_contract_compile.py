"""torch.compile, torch.export, tracing and checkpointing of dense layers, losses and whole steps."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import manualgrad as mg


pytestmark = [  # PyTorch's own, on importing its decompositions and on tracing any autograd.Function
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function'> should not be instantiated:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


class Block(nn.Module):
    """A transformer block as people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.mix = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mix(self.norm(x))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Softplus(), nn.Linear(16, 8))


def gradients(function: Any, model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


@pytest.mark.parametrize("build", [perceptron, Block])
def test_a_converted_model_compiles_without_a_graph_break_and_with_a_dynamic_batch(build: Any) -> None:
    original = build()
    model = mg.convert(copy.deepcopy(original))
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5, 7):
        x = torch.randn(batch, 3, 8)
        with torch._dynamo.config.patch(error_on_recompile=batch > 2):
            actual = gradients(compiled, model, x)
        torch.testing.assert_close(actual, gradients(original, original, x), rtol=1e-5, atol=1e-5)


def test_a_whole_step_in_inductor_s_code() -> None:
    torch.manual_seed(1)
    eager = mg.MLP([4, 6, 3], "sigmoid").double()
    compiled = mg.MLP([4, 6, 3], "sigmoid").double()
    compiled.load_state_dict(eager.state_dict())
    x, y = torch.randn(5, 4).double(), torch.randint(3, (5,))
    loss = mg.SoftmaxCrossEntropyLoss()

    @torch.compile(fullgraph=True)
    def compiled_loss(x: Tensor, y: Tensor) -> Tensor:
        return loss(compiled(x), y)

    for model, value in ((eager, lambda x, y: loss(eager(x), y)), (compiled, compiled_loss)):
        optimizer = mg.GradientDescent(model.parameters(), lr=0.5, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            value(x, y).backward()
            optimizer.step()
    torch.testing.assert_close(compiled.state_dict(), eager.state_dict(), rtol=1e-10, atol=1e-12)


def test_compiled_layers_hand_over_dense_gradients() -> None:
    model = mg.Dense(256, 256)
    mg.GradientDescent(model.parameters(), lr=0.1)
    torch.compile(model, fullgraph=True, backend="aot_eager")(torch.randn(2, 256)).sum().backward()
    assert type(model.weight.grad) is Tensor


def test_transforms_inside_of_compiled_code() -> None:
    layer = mg.Dense(4, 3, activation="softplus").requires_grad_(False)
    x, direction = torch.randn(5, 4), torch.randn(5, 4)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        tangent = torch.func.jvp(layer, (x,), (direction,))[1]
        return tangent, torch.func.vmap(torch.func.grad(lambda row: layer(row).square().sum()))(x)

    torch.testing.assert_close(torch.compile(both, fullgraph=True, backend="aot_eager")(x), both(x))


@pytest.mark.parametrize("strict", [False, True])
def test_export_gives_a_plain_linear_graph(strict: bool) -> None:
    model, x = mg.MLP([4, 6, 3], "tanh"), torch.randn(5, 4)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=strict)
    program = program.run_decompositions({})  # in-place operations on a layer's own z become functional
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert calls == ["aten.linear.default", "aten.tanh.default", "aten.linear.default"]
    exported = program.module()
    x = torch.randn(7, 4)
    torch.testing.assert_close(gradients(exported, exported, x), gradients(model, model, x))


def test_tracing_gives_a_plain_linear_graph() -> None:
    model, x = mg.MLP([4, 6, 3], "gelu"), torch.randn(5, 4)
    with pytest.warns(DeprecationWarning, match="torch.jit.trace"):
        traced = torch.jit.trace(model, (x,))
    calls = [node.kind() for node in traced.inlined_graph.nodes() if node.kind().startswith("aten")]
    assert calls == ["aten::linear", "aten::gelu", "aten::linear"]
    torch.testing.assert_close(gradients(traced, traced, x), gradients(model, model, x))


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_checkpointing(activation: str, use_reentrant: bool) -> None:
    model, x = mg.MLP([4, 6, 3], activation), torch.randn(5, 4, requires_grad=True)
    expected = gradients(model, model, x.detach())
    y = checkpoint(model, x, use_reentrant=use_reentrant)
    y.square().sum().backward()
    actual = [y.detach(), x.grad, *(p.grad for p in model.parameters())]
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_checkpointing_with_factored_gradients() -> None:
    model, x = mg.Dense(256, 256, activation="relu"), torch.randn(4, 256)
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    model(x).square().sum().backward()
    assert isinstance(model.weight.grad, mg.FactoredGradient)
    expected = model.weight.grad.to_dense()
    optimizer.zero_grad()
    checkpoint(model, x, use_reentrant=False).square().sum().backward()
    assert isinstance(model.weight.grad, mg.FactoredGradient)
    torch.testing.assert_close(model.weight.grad.to_dense(), expected, rtol=0, atol=0)


def test_saved_tensors_may_live_elsewhere() -> None:
    """As with torch.autograd.graph.save_on_cpu: what is saved goes through the hooks, and only that is used."""
    model, x = mg.MLP([4, 6, 3], "tanh").double(), torch.randn(5, 4).double()
    expected = gradients(model, model, x)
    packed = []

    def pack(t: Tensor) -> bytes:
        packed.append(t.shape)
        return t.detach().numpy().tobytes(), t.shape  # type: ignore[return-value]

    def unpack(stored: Any) -> Tensor:
        return torch.frombuffer(bytearray(stored[0]), dtype=torch.float64).reshape(stored[1])

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        x.requires_grad_()
        y = model(x)
    actual = [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert len(packed) == 5  # x, w and a of the first layer, a and w of the second
