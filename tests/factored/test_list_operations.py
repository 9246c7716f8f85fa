"""Operations on lists of gradients whose factors are parts of what the same list changes."""

import torch
from torch import Tensor

import manualgrad as mg


def test_a_foreach_step_on_a_factor_of_a_later_gradient() -> None:
    first, second = torch.ones(2, 5), torch.ones(4, 5)
    gradients: list[Tensor] = [
        mg.FactoredGradient(torch.ones(1, 2), torch.ones(1, 5)),
        mg.FactoredGradient(torch.ones(2, 4), first),
    ]
    torch._foreach_add_([first, second], gradients, alpha=-0.5)
    assert torch.equal(first, torch.full((2, 5), 0.5)) and torch.equal(second, torch.zeros(4, 5))


def test_a_fused_step_on_a_factor_of_a_later_gradient() -> None:
    first, second = (torch.nn.Parameter(torch.ones(m, 5)) for m in (2, 4))
    first.grad = mg.FactoredGradient(torch.ones(1, 2), torch.ones(1, 5))
    second.grad = mg.FactoredGradient(torch.ones(2, 4), first.detach())
    torch.optim.SGD([first, second], lr=0.5, fused=True).step()
    assert torch.equal(first, torch.full((2, 5), 0.5)) and torch.equal(second, torch.zeros(4, 5))


def test_a_fused_step_with_a_dense_gradient_before_a_factored_one() -> None:
    first, second = (torch.nn.Parameter(torch.ones(m, 5)) for m in (2, 4))
    first.grad = torch.ones(2, 5)
    second.grad = mg.FactoredGradient(torch.ones(2, 4), first.detach())
    torch.optim.SGD([first, second], lr=0.5, fused=True).step()
    assert torch.equal(first, torch.full((2, 5), 0.5)) and torch.equal(second, torch.zeros(4, 5))
