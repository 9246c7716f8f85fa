"""A factored gradient and a dense tensor go through the same random history and must never differ.

`python tests/factored/test_stateful.py 10000` runs that many histories instead of the few of the suite.
"""

import copy
import pickle
import sys
import warnings

import pytest
import torch
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor

import manualgrad as mg
from manualgrad.factored import choice


M, N = 4, 5  # of the weight; r (m + n) < m n holds for up to two rows
NUMBERS = st.sampled_from([-1.0, 0.0, 0.5, 2, 3.0])
SEEDS = st.integers(0, 2**16)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


OUT_OF_PLACE = {
    "mul": lambda g, x: g * x,
    "mul by a 0-dimensional tensor": lambda g, x: g * torch.tensor(float(x), dtype=torch.float64),
    "div": lambda g, x: g / (x or 1),
    "neg": lambda g, x: -g,
    "add itself": lambda g, x: torch.add(g, g, alpha=x),
    "subtract a tensor": lambda g, x: g - torch.full((M, N), float(x), dtype=torch.float64),
    "subtract from a tensor": lambda g, x: torch.full((M, N), float(x), dtype=torch.float64) - g,
    "detach": lambda g, x: g.detach(),
    "data": lambda g, x: g.data,
    "clone": lambda g, x: g.clone(),
    "abs": lambda g, x: g.abs(),
    "to float32 and back": lambda g, x: g.to(torch.float32).to(torch.float64),
    "row": lambda g, x: g[1],
    "transposed": lambda g, x: g.t(),
    "flat": lambda g, x: g.view(-1),
    "deepcopy": lambda g, x: copy.deepcopy(g),
    "pickle": lambda g, x: pickle.loads(pickle.dumps(g)),
    "foreach": lambda g, x: torch._foreach_add([g], [g], alpha=x)[0],
    "zeros like it": lambda g, x: torch.zeros_like(g),
    "where": lambda g, x: torch.where(g > 0, g, x * g),
}

IN_PLACE = {
    "mul_": lambda g, x: g.mul_(x),
    "mul_ by a 0-dimensional tensor": lambda g, x: g.mul_(torch.tensor(float(x), dtype=torch.float64)),
    "div_": lambda g, x: g.div_(x or 2),
    "neg_": lambda g, x: g.neg_(),
    "zero_": lambda g, x: g.zero_(),
    "add_ of a number": lambda g, x: g.add_(x),
    "add_ of a tensor": lambda g, x: g.add_(torch.full_like(g, 0.5), alpha=x),
    "add_ of itself": lambda g, x: g.add_(g, alpha=x),
    "clamp_": lambda g, x: g.clamp_(-1, 1),
    "abs_": lambda g, x: g.abs_(),
    "copy_ of a tensor": lambda g, x: g.copy_(torch.full_like(g, float(x))),
    "fill_": lambda g, x: g.fill_(x),
    "foreach add_": lambda g, x: torch._foreach_add_([g], [torch.ones_like(g)], alpha=x),
    "foreach mul_": lambda g, x: torch._foreach_mul_([g], x),
    "foreach zero_": lambda g, x: torch._foreach_zero_([g]),
    "through a view": lambda g, x: g.view(-1).mul_(x),
    "through an alias": lambda g, x: g.detach().mul_(x),
    "at an index": lambda g, x: g.__setitem__((0, 1), x),
    "lerp_": lambda g, x: g.lerp_(torch.ones_like(g), 0.25),
    "requires_grad_": lambda g, x: g.requires_grad_(False),
}


class Histories(RuleBasedStateMachine):
    """Handles come in pairs, (ours, dense); handles of one family alias one another on both sides alike."""

    @initialize(seed=SEEDS, momentum=st.sampled_from([0, 0.9]), decay=st.sampled_from([0, 0.1]), stock=st.booleans())
    def start(self, seed: int, momentum: float, decay: float, stock: bool) -> None:
        layer = mg.Dense(N, M, bias=False, dtype=torch.float64)
        layer.weight.data = random(seed, M, N)
        twin = torch.nn.Linear(N, M, bias=False, dtype=torch.float64)
        twin.weight.data = layer.weight.data.clone()
        make = torch.optim.SGD if stock else mg.GradientDescent
        if stock:
            mg.keep_factored(layer)
        self.layer, self.twin = layer, twin
        self.optimizer = make(layer.parameters(), lr=0.1, momentum=momentum, weight_decay=decay)
        self.twin_optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=momentum, weight_decay=decay)
        self.handles: list[tuple[Tensor, Tensor]] = []

    def matrices(self) -> list[tuple[Tensor, Tensor]]:
        return [pair for pair in self.handles if pair[1].shape == (M, N)]

    @rule(seed=SEEDS, r=st.integers(1, 3), batches=st.integers(1, 2))
    def backward(self, seed: int, r: int, batches: int) -> None:
        for i in range(batches):
            x, upstream = random(seed + i, r, N), random(seed + 7 + i, r, M)
            self.layer(x).backward(upstream)
            self.twin(x).backward(upstream)

    @precondition(lambda self: self.layer.weight.grad is not None)
    @rule()
    def hold_the_gradient(self) -> None:
        assert self.layer.weight.grad is not None and self.twin.weight.grad is not None
        self.handles = [*self.handles[-5:], (self.layer.weight.grad, self.twin.weight.grad)]

    @rule(seed=SEEDS, r=st.integers(1, 2))
    def make(self, seed: int, r: int) -> None:
        delta, a = random(seed, r, M), random(seed + 1, r, N)
        self.handles = [*self.handles[-5:], (mg.FactoredGradient(delta, a), delta.t() @ a)]

    @precondition(lambda self: self.layer.weight.grad is not None)
    @rule(set_to_none=st.booleans())
    def zero_grad(self, set_to_none: bool) -> None:
        self.optimizer.zero_grad(set_to_none)
        self.twin_optimizer.zero_grad(set_to_none)

    @rule()
    def step(self) -> None:
        self.optimizer.step()
        self.twin_optimizer.step()

    @precondition(lambda self: self.layer.weight.grad is not None)
    @rule(limit=st.sampled_from([0.1, 10.0]), by_value=st.booleans())
    def clip(self, limit: float, by_value: bool) -> None:
        clip = torch.nn.utils.clip_grad_value_ if by_value else torch.nn.utils.clip_grad_norm_
        clip(self.layer.parameters(), limit)
        clip(self.twin.parameters(), limit)

    @precondition(lambda self: self.matrices())
    @rule(which=st.integers(0, 9), name=st.sampled_from(sorted(OUT_OF_PLACE)), number=NUMBERS)
    def out_of_place(self, which: int, name: str, number: float) -> None:
        ours, dense = self.matrices()[which % len(self.matrices())]
        self.handles = [*self.handles[-5:], (OUT_OF_PLACE[name](ours, number), OUT_OF_PLACE[name](dense, number))]

    @precondition(lambda self: self.matrices())
    @rule(which=st.integers(0, 9), name=st.sampled_from(sorted(IN_PLACE)), number=NUMBERS)
    def in_place(self, which: int, name: str, number: float) -> None:
        ours, dense = self.matrices()[which % len(self.matrices())]
        result = IN_PLACE[name](ours, number)
        IN_PLACE[name](dense, number)
        if isinstance(result, Tensor) and not name.startswith("through"):
            assert result is ours

    @precondition(lambda self: len(self.matrices()) > 1)
    @rule(
        i=st.integers(0, 9), j=st.integers(0, 9), alpha=NUMBERS, how=st.sampled_from(["add_", "sub_", "copy_", "add"])
    )
    def combine(self, i: int, j: int, alpha: float, how: str) -> None:
        (x, dense_x), (y, dense_y) = (self.matrices()[k % len(self.matrices())] for k in (i, j))
        for one, other in ((x, y), (dense_x, dense_y)):
            if how == "add":
                torch.add(one, other, alpha=alpha, out=torch.empty(0, dtype=torch.float64))
            elif how == "copy_":
                one.copy_(other)
            else:
                getattr(one, how)(other, alpha=alpha)

    @precondition(lambda self: self.matrices())
    @rule(which=st.integers(0, 9))
    def become_the_gradient(self, which: int) -> None:
        ours, dense = self.matrices()[which % len(self.matrices())]
        if ours.dtype == torch.float64:
            self.layer.weight.grad, self.twin.weight.grad = ours, dense

    @invariant()
    def nothing_differs(self) -> None:
        if not hasattr(self, "handles"):
            return
        pairs = [*self.handles, (self.layer.weight.detach(), self.twin.weight.detach())]
        if self.layer.weight.grad is not None:
            assert self.twin.weight.grad is not None
            pairs.append((self.layer.weight.grad, self.twin.weight.grad))
        for ours, dense in pairs:
            value = ours.to_dense() if isinstance(ours, mg.FactoredGradient) else ours
            assert ours.shape == dense.shape and ours.dtype == dense.dtype
            scale = max(1.0, float(dense.abs().max()) if dense.numel() else 1.0)
            torch.testing.assert_close(value, dense, rtol=1e-6, atol=1e-6 * scale, equal_nan=True)
            for order in (1, 2, float("inf")):
                norm = torch.linalg.vector_norm(ours, order)
                torch.testing.assert_close(norm, torch.linalg.vector_norm(dense, order), rtol=1e-6, atol=1e-6 * scale)


def run(histories: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mg.FactorsLostWarning)
        run_state_machine_as_test(
            Histories,
            settings=settings(
                max_examples=histories,
                stateful_step_count=25,
                deadline=None,
                derandomize=histories <= 100,
                suppress_health_check=list(HealthCheck),
            ),
        )


@pytest.mark.usefixtures("small_weights_too")
def test_random_histories() -> None:
    run(25)


if __name__ == "__main__":
    choice.SMALLEST_FACTORED_WEIGHT = 0
    run(int(sys.argv[1]))
