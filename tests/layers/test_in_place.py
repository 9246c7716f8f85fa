"""What may be written over after a Dense: the same as after an nn.Linear, on any number of axes."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import manualgrad as mg


def add_the_input(h: Tensor, x: Tensor) -> Tensor:
    h += x
    return h


def overwrite_a_part(h: Tensor, x: Tensor) -> Tensor:
    h[..., 0] = x[..., 1]
    return h


WRITERS: list[Callable[[Tensor, Tensor], Tensor]] = [
    add_the_input,
    overwrite_a_part,
    *(lambda h, x, f=f: f(h) for f in (torch.relu_, F.leaky_relu_, F.elu_, torch.sigmoid_, torch.tanh_)),
    lambda h, x: F.silu(h, inplace=True),
    lambda h, x: h.view(-1).mul_(2).view(h.shape),
]
TRACING = "ignore:.*autograd.function.Function'> should not be instantiated:DeprecationWarning"
shapes = pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 4), (2, 3, 4), (2, 1, 3, 4), (2, 0, 4)], ids=str)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@shapes
def test_the_output_may_be_written_over(shape: tuple[int, ...], bias: bool, autocast: bool) -> None:
    linear, x = nn.Linear(4, 4, bias=bias), torch.randn(shape)
    for write in WRITERS:
        results = []
        for layer in (linear, mg.Dense.from_linear(linear)):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                h = write(layer(x), x)
            results.append((h, *torch.autograd.grad(h.float().square().sum(), list(linear.parameters()))))
        assert torch.equal(results[0][0], results[1][0])
        torch.testing.assert_close(results[1], results[0], rtol=2e-2 if autocast else 1e-5, atol=1e-6)


def test_no_copy_is_made_for_it() -> None:
    layer, x = mg.Dense(4, 4), torch.randn(2, 3, 4)

    def copies(f: Callable[[Tensor], Tensor]) -> int:
        with torch.profiler.profile() as profile:
            f(x)
        return sum(event.count for event in profile.key_averages() if event.key in ("aten::copy_", "aten::clone"))

    assert copies(layer) == copies(lambda x: F.linear(x, layer.weight, layer.bias))


@pytest.mark.filterwarnings(TRACING, "ignore:.*torch.jit.script. is deprecated:DeprecationWarning")
@shapes
def test_compiled_and_transformed(shape: tuple[int, ...]) -> None:
    torch._dynamo.reset()
    layer, x = mg.Dense(4, 4).double(), torch.randn(2, *shape, dtype=torch.float64)
    linear: Any = copy.deepcopy(layer)
    linear.__class__ = nn.Linear
    results = []
    for module in (linear, layer):
        f = lambda x: module(x).add_(x).mul_(2)  # noqa: E731, B023
        compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
        total = lambda x: f(x).square().sum()  # noqa: E731, B023
        results.append(
            (
                torch.autograd.grad(compiled(x).square().sum(), list(module.parameters())),
                torch.func.vmap(torch.func.grad(total))(x),
                torch.func.jvp(f, (x,), (x + 1,)),
            )
        )
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-13)


@pytest.mark.filterwarnings(TRACING)
def test_a_wide_layer_in_a_graph_without_breaks() -> None:
    """Its product is chosen by the number of threads, which torch.compile cannot ask for."""
    layer, x = mg.Dense(512, 512), torch.randn(2, 512)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    layer(x[:1]).add_(1).sum().backward()


class Residual(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), activation)

    def forward(self, x: Tensor) -> Tensor:
        h = self.net(x)
        h += x
        return h


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(True),
        nn.LeakyReLU(0.1),
        nn.LeakyReLU(0.1, True),
        nn.ELU(),
        nn.ELU(inplace=True),
        nn.SiLU(True),
        nn.GELU(),
    ],
    ids=lambda module: str(module).lower(),
)
@shapes
def test_a_residual_after_the_activation(shape: tuple[int, ...], activation: nn.Module) -> None:
    """Where PyTorch's own activation has saved its output, writing over it is an error for both, in the same words."""
    model, x = Residual(copy.deepcopy(activation)).double(), torch.randn(shape, dtype=torch.float64)
    results: list[Any] = []
    for step in (lambda m: m, mg.convert):
        step(model)
        h = model(x)
        try:
            results.append((h, *torch.autograd.grad(h.square().sum(), list(model.parameters()))))
        except RuntimeError as error:
            results.append((h, str(error).split(", which is output")[0]))
    assert torch.equal(results[0][0], results[1][0])
    if isinstance(results[0][1], str):
        assert results[1][1] == results[0][1]
    else:
        torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-13)
