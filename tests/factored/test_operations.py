"""What the random histories of test_stateful.py found, by name."""

import torch

import manualgrad as mg


def gradient(rows: int = 1) -> mg.FactoredGradient:
    generator = torch.Generator().manual_seed(0)
    return mg.FactoredGradient(torch.randn(rows, 4, generator=generator), torch.randn(rows, 5, generator=generator))


def test_dividing_by_one_makes_no_alias() -> None:
    g = gradient()
    before = g.to_dense()
    quotient = g / 1
    g.zero_()
    assert torch.equal(quotient.to_dense(), before)


def test_a_dense_gradient_copied_onto_itself_stays() -> None:
    g = gradient()
    before = g.densify().clone()
    g.copy_(g)
    assert torch.equal(g.to_dense(), before)
