"""Tensors that have rules of their own for a linear layer get them: `Dense` does with these what `nn.Linear` does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

import manualgrad as mg


def pair(activation: str | None = None) -> tuple[Any, Any]:
    layer = mg.Dense(5, 4, activation=activation, dtype=torch.float64)
    linear = nn.Linear(5, 4, dtype=torch.float64)
    linear.load_state_dict(layer.state_dict())
    return layer, linear if activation is None else nn.Sequential(linear, nn.ReLU())


def parts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(k, 5, generator=generator, dtype=torch.float64) for k in (2, 3, 1)]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("factored", [False, True])
def test_nested_tensors(layout: torch.layout, activation: str | None, factored: bool) -> None:
    results = []
    for one in pair(activation):
        mg.keep_factored(one, factored)
        xs = [x.requires_grad_() for x in parts()]
        nested = torch.nested.as_nested_tensor(xs, layout=layout)
        z = one(nested)
        torch.cat(z.unbind()).square().sum().backward()
        results.append([*z.unbind(), *(x.grad for x in xs), *(p.grad for p in one.parameters())])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_expanded_weights(activation: str | None, reduction: str) -> None:
    results: list[list[Any]] = []
    for one in pair(activation):
        x = torch.cat(parts())
        call_for_per_sample_grads(one, loss_reduction=reduction)(x).square().sum().backward()
        results.append([vars(p)["grad_sample"] for p in one.parameters()])
    assert results[0][0].shape == (6, 4, 5)
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


class Doubled(Tensor):
    """A weight that a linear layer is to use twice as large: a stand-in for quantized ones, which also answer `linear`."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            x, weight, *rest = args
            return func(x, 2 * weight.as_subclass(Tensor), *rest, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})


class Named(Tensor):
    """A subclass without rules of its own, such as torchvision's images."""


def test_a_weight_that_answers_for_itself() -> None:
    layer, linear = pair()
    for one in (layer, linear):
        one.weight = nn.Parameter(one.weight.detach().as_subclass(Doubled), requires_grad=False)
    x = parts()[1]
    results = []
    for one in (layer, linear):
        below = x.clone().requires_grad_()
        one(below).square().sum().backward()
        results.append([below.grad, one.bias.grad])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(layer(x), pair()[0](x))


def test_a_subclass_without_rules_stays_by_hand() -> None:
    layer, linear = pair()
    x = parts()[1].as_subclass(Named)
    outputs = [one(x) for one in (layer, linear)]
    assert "Dense" in type(outputs[0].grad_fn).__name__ or "Dense" in str(outputs[0].grad_fn.next_functions)
    torch.testing.assert_close(*(z.as_subclass(Tensor) for z in outputs))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse CSR weight": lambda w: w.to_sparse_csr(),
    "sparse CSC weight": lambda w: w.to_sparse_csc(),
}


@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta state")
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_sparse_weights(layout: Callable[[Tensor], Tensor]) -> None:
    outputs = []
    for one in pair():
        one.weight = nn.Parameter(layout(one.weight.detach()), requires_grad=False)
        outputs.append(one(parts()[1]))
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
