"""torch.compile, torch.export, tracing and checkpointing of dense layers, losses and whole steps."""

import copy
import re
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

import manualgrad as mg


pytestmark = [  # PyTorch's own, on tracing any autograd.Function
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function'> should not be instantiated:DeprecationWarning"),
]


# A strict export cannot be told from torch.compile there, and of layers that are alike each is compiled, also nn.Linear.
not_in_torch_2_6 = pytest.mark.skipif(torch.__version__ < "2.7", reason="not in torch 2.6")


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


@pytest.mark.parametrize("loss", [mg.QuadraticLoss(), mg.BinaryCrossEntropyLoss(), mg.SoftmaxCrossEntropyLoss()])
def test_losses_compile_with_a_dynamic_batch(loss: nn.Module) -> None:
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5, 7):
        z, y = torch.randn(batch, 3, requires_grad=True), torch.rand(batch, 3)
        with torch._dynamo.config.patch(error_on_recompile=batch > 2):
            actual = torch.autograd.grad(compiled(z, y), z)
        torch.testing.assert_close(actual, torch.autograd.grad(loss(z, y), z))


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


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=not_in_torch_2_6)])
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
    traced: Any = torch.jit.trace(model, (x,))
    calls = [node.kind() for node in traced.inlined_graph.nodes() if node.kind().startswith("aten")]
    assert calls == ["aten::linear", "aten::gelu", "aten::linear"]
    torch.testing.assert_close(gradients(traced, traced, x), gradients(model, model, x))


def compiled_operations(model: nn.Module, x: Tensor) -> list[Counter[str]]:
    """What the compiler is given for the forward and the backward pass, views left out."""
    graphs: list[Counter[str]] = []

    def note(graph: Any, example_inputs: Any) -> Any:
        calls = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        views = re.compile(
            r"aten\.(t|view|permute|transpose|expand|_unsafe_view|reshape|detach|clone|alias|squeeze)\b|getitem"
        )
        graphs.append(Counter(name for name in calls if not views.search(name)))
        return make_boxed_func(graph.forward)

    torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=note, bw_compiler=note))(x).sum().backward()
    return graphs


@pytest.mark.parametrize("build", [perceptron, Block])
def test_the_compiler_gets_the_same_operations_as_of_the_original(build: Any) -> None:
    """So the compiled step takes the same time."""
    original, x = build(), torch.randn(2, 3, 8)
    converted = mg.convert(copy.deepcopy(original))
    theirs, ours = compiled_operations(original, x), compiled_operations(converted, x)
    assert theirs[1]["aten.mm.default"] >= 5
    assert ours[0] == theirs[0]
    assert ours[1] == theirs[1]


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(0.2), nn.Linear(8, 8), nn.Softplus(2.0)) for _ in range(6)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


@not_in_torch_2_6
@pytest.mark.parametrize("converted", [False, True])
def test_layers_that_are_alike_share_compiled_code(converted: bool) -> None:
    """Compiled one by one, as for long stacks: the second and all others run what the first has compiled."""
    model: Any = mg.convert(Stack()) if converted else Stack()
    compiled = []

    def count(graph: Any, example_inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    for i, block in enumerate(model.blocks):
        block.forward = torch.compile(block.forward, backend=count, fullgraph=True)
        with torch._dynamo.config.patch(error_on_recompile=i > 1):
            model.blocks[i](torch.randn(3, 8, requires_grad=True)).sum().backward()
    assert len(compiled) == 1


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)  # the exporter's
def test_onnx_has_the_operators_of_a_linear_layer() -> None:
    pytest.importorskip(
        "onnxscript", reason="ONNX is exported by the packages onnx and onnxscript, which are not installed"
    )
    model, batch = mg.MLP([4, 6, 3], "relu").eval(), torch.export.Dim("batch")
    program = torch.onnx.export(model, (torch.randn(5, 4),), dynamo=True, verbose=False, dynamic_shapes=({0: batch},))
    assert program is not None
    assert [node.op_type for node in program.model.graph] == ["Gemm", "Relu", "Gemm"]
