"""What is saved for the backward pass may be computed again, or live elsewhere meanwhile."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import manualgrad as mg


def gradients(function: Any, model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


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
    assert len(packed) == 5  # x, w and a of the first layer, a and w of the second
    actual = [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("loss", [mg.QuadraticLoss(), mg.BinaryCrossEntropyLoss(), mg.SoftmaxCrossEntropyLoss()])
def test_losses_may_be_offloaded_and_checkpointed(loss: nn.Module) -> None:
    z, y = torch.randn(5, 3, requires_grad=True), torch.rand(5, 3)
    expected = torch.autograd.grad(loss(z, y), z)
    with torch.autograd.graph.save_on_cpu():
        value = loss(z, y)
    torch.testing.assert_close(torch.autograd.grad(value, z), expected, rtol=0, atol=0)
    value = checkpoint(loss, z, y, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(value, z), expected, rtol=0, atol=0)


def test_factored_gradients_from_offloaded_tensors() -> None:
    """What comes back is another tensor, and that is what the factors are made of."""
    model = mg.Dense(256, 256, activation="relu")
    x, optimizer = torch.randn(4, 256), mg.GradientDescent(model.parameters(), lr=0.1)
    expected = torch.autograd.grad(model(x).square().sum(), model.weight)[0].to_dense()
    with torch.autograd.graph.saved_tensors_hooks(Tensor.clone, lambda t: t):
        y = model(x)
    x.zero_()  # the saved copy does not change with it
    y.square().sum().backward()
    assert isinstance(model.weight.grad, mg.FactoredGradient)
    torch.testing.assert_close(model.weight.grad.to_dense(), expected)
    optimizer.step()
