"""Random trainings, TrainStep beside autograd and `torch.optim.SGD`: the same weights, or a refusal before anything changes."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg


DTYPE = torch.float64
ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Identity, nn.Softplus,
    lambda: nn.LeakyReLU(0.1), lambda: nn.ELU(0.7), lambda: nn.GELU("tanh"),
]  # fmt: skip
LOSSES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "mse": (nn.MSELoss, nn.MSELoss),
    "quadratic": (mg.QuadraticLoss, mg.QuadraticLoss),
    "indices": (nn.CrossEntropyLoss, nn.CrossEntropyLoss),
    "probabilities": (mg.SoftmaxCrossEntropyLoss, nn.CrossEntropyLoss),
    "binary": (mg.BinaryCrossEntropyLoss, nn.BCEWithLogitsLoss),
}
# The same number in another guise.
GUISES: list[Callable[[float], Any]] = [
    float, float, np.float64, np.float32, lambda x: Fraction(x).limit_denominator(1000), lambda x: np.array(x)[()],
]  # fmt: skip
SCHEDULES: list[Callable[[Any], Any]] = [
    lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5),
    lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20),
    lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, 10),
    lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda i: min(1.0, i / 4)),  # begins at 0
    lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=100, cycle_momentum=o.defaults["momentum"] != 0),
    lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, 3, cycle_momentum=o.defaults["momentum"] != 0),
]


class Training:
    """One random model trained twice, and what may happen to both on the way."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.r = random.Random(seed)
        r = self.r
        self.sizes = [r.randint(1, 24) for _ in range(r.randint(2, 5))]
        self.loss_name = r.choice([*LOSSES])
        self.theirs, self.ours = self._models()
        options: dict[str, Any] = {"lr": r.choice([0.05, 0.1, 0.02])}
        if r.random() < 0.5:
            options["momentum"] = r.choice([0.9, 0.5])
            kinds: list[dict[str, Any]] = [{}, {"nesterov": True}, {"dampening": r.choice([0.1, 1.0])}]
            options.update(r.choice(kinds))
        if r.random() < 0.3:
            options["weight_decay"] = 0.01
        if r.random() < 0.1:
            options["maximize"], options["lr"] = True, 1e-3
        self.sgd = torch.optim.SGD(self._groups(self.theirs), **self._plain(options))
        self.descent = mg.GradientDescent(self._groups(self.ours), **options)
        self.max_norm: Any = r.choice([None, None, 0.5, 1e-3, 100.0, math.inf, np.float32(0.25), Fraction(1, 3)])
        make = r.choice([None, None, *SCHEDULES])
        self.schedules = [] if make is None else [make(self.sgd), make(self.descent)]
        ours, theirs = LOSSES[self.loss_name]
        self.loss, self.their_loss = ours(), theirs()
        self.step = self._new_step()

    def _plain(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options as SGD takes them; ours get each number in some guise."""
        plain = dict(options)
        for name in ("lr", "momentum", "weight_decay", "dampening"):
            if name in options and not self.r.randrange(3):
                options[name] = self.r.choice(GUISES)(options[name])
                plain[name] = float(options[name])
        return plain

    def _new_step(self) -> mg.TrainStep:
        return mg.TrainStep(self.ours, self.loss, self.descent, max_norm=self.max_norm)

    def _models(self) -> tuple[nn.Sequential, nn.Module]:
        """Of torch.nn alone; and the same with some layers, and their activations, by `Dense`."""
        theirs: list[nn.Module] = []
        ours: list[nn.Module] = []
        for n, m in zip(self.sizes, self.sizes[1:], strict=False):
            linear = nn.Linear(n, m, bias=self.r.random() < 0.8, dtype=DTYPE)
            sigma = self.r.choice(ACTIVATIONS)()
            theirs += [linear, sigma]
            own = copy.deepcopy(linear)
            ours += [mg.Dense.from_linear(own) if self.r.random() < 0.5 else own, copy.deepcopy(sigma)]
        if self.r.random() < 0.3:
            ours = [nn.Sequential(*ours[:2]), *ours[2:]]
        return nn.Sequential(*theirs), nn.Sequential(*ours)

    def _groups(self, model: nn.Module) -> Any:
        parameters = list(model.parameters())
        if len(parameters) < 2 or len(self.sizes) % 2:
            return parameters
        return [{"params": parameters[::2]}, {"params": parameters[1::2], "lr": 0.03}]

    def batch(self) -> tuple[Tensor, Tensor]:
        rows = self.r.choice([1, 3, 7, 7, 7, 20])
        x = torch.randn(rows, self.sizes[0], dtype=DTYPE) * self.r.choice([1.0, 1.0, 1.0, 30.0])
        m = self.sizes[-1]
        if self.loss_name == "indices":
            return x, torch.randint(m, (rows,))
        y = torch.rand(rows, m, dtype=DTYPE)
        return x, (y.softmax(1) if self.loss_name == "probabilities" else y)

    def take(self, x: Tensor, y: Tensor) -> None:
        self.sgd.zero_grad()
        cost = self.their_loss(self.theirs(x), y)
        cost.backward()
        if self.max_norm is not None:
            nn.utils.clip_grad_norm_(self.theirs.parameters(), float(self.max_norm))
        self.sgd.step()
        found = self.step(x, y)
        torch.testing.assert_close(found, cost.detach(), rtol=1e-9, atol=1e-12, equal_nan=True)

    def compare(self) -> None:
        """Each step by itself: then both go on from the same numbers, so that rounding does not grow with every step."""
        for p, q in zip(self.ours.parameters(), self.theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11, equal_nan=True)
            v, u = (o.state[w].get("momentum_buffer") for o, w in ((self.descent, p), (self.sgd, q)))
            if v is not None and u is not None:
                torch.testing.assert_close(v, u, rtol=1e-9, atol=1e-11, equal_nan=True)
                v.copy_(u)
            with torch.no_grad():
                p.copy_(q)

    def refused(self, why: str, *batch: Any) -> None:
        """The step raises one of our sentences, and nothing has changed."""
        before = copy.deepcopy((self.ours.state_dict(), self.descent.state_dict()["state"]))
        with pytest.raises((RuntimeError, TypeError, ValueError, AttributeError), match=r"expected|Expected"):
            self.step(*batch)
            raise AssertionError(f"not refused: {why}")
        after = self.ours.state_dict(), self.descent.state_dict()["state"]
        torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True, msg=why)

    # What may happen between two steps.

    def _number(self) -> None:
        """An option takes another value, in some guise."""
        i = self.r.randrange(len(self.sgd.param_groups))
        theirs, ours = self.sgd.param_groups[i], self.descent.param_groups[i]
        names = ["lr", "weight_decay"]
        if theirs["momentum"]:
            names.append("momentum")
        if theirs["momentum"] and not theirs["nesterov"]:
            names.append("dampening")
        name = self.r.choice(names)
        value = self.r.choice([0.0, 0.01, 0.05]) if name != "momentum" else self.r.choice([0.3, 0.95, 1.0])
        if self.schedules and name in ("lr", "momentum"):
            return
        ours[name] = self.r.choice(GUISES)(value)
        theirs[name] = float(ours[name])

    def _freeze(self) -> None:
        pairs = list(zip(self.ours.parameters(), self.theirs.parameters(), strict=True))
        for p, q in self.r.sample(pairs, self.r.randint(0, len(pairs) - 1)):
            p.requires_grad_(not p.requires_grad)
            q.requires_grad_(p.requires_grad)
        if not any(p.requires_grad for p, _ in pairs):
            pairs[0][0].requires_grad_()
            pairs[0][1].requires_grad_()

    def _load(self) -> None:
        self.ours.load_state_dict(copy.deepcopy(self.ours.state_dict()))
        self.descent.load_state_dict(copy.deepcopy(self.descent.state_dict()))

    def _by_autograd(self) -> None:
        if any(isinstance(option, Fraction) for group in self.descent.param_groups for option in group.values()):
            return  # which no kernel takes
        x, y = self.batch()
        for model, loss, optimizer in (
            (self.theirs, self.their_loss, self.sgd), (self.ours, self.loss, self.descent),
        ):  # fmt: skip
            optimizer.zero_grad()
            loss(model(x), y).backward()
            if self.max_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), float(self.max_norm))
            optimizer.step()
            optimizer.zero_grad()

    def _written(self) -> None:
        """Weights and v are written to in place."""
        with torch.no_grad():
            for p, q in zip(self.ours.parameters(), self.theirs.parameters(), strict=True):
                p.mul_(0.9)
                q.mul_(0.9)
                for state in (self.descent.state[p], self.sgd.state[q]):
                    if state.get("momentum_buffer") is not None:
                        state["momentum_buffer"].mul_(0.5)

    def _velocity_elsewhere(self) -> None:
        for state in self.descent.state.values():
            if state.get("momentum_buffer") is not None:
                state["momentum_buffer"].data = state["momentum_buffer"].clone()

    def _shared(self) -> None:
        self.ours.share_memory()

    def _new(self) -> None:
        self.step = self._new_step()

    def _hook(self) -> None:
        p = self.r.choice([p for p in self.ours.parameters() if p.requires_grad])
        module = self.r.choice(list(self.ours.modules()))
        handle = self.r.choice(
            [
                lambda: p.register_hook(lambda g: g),
                lambda: p.register_post_accumulate_grad_hook(lambda _: None),
                lambda: module.register_forward_hook(lambda *_: None),
                lambda: module.register_full_backward_hook(lambda *_: None),
                lambda: torch.nn.modules.module.register_module_forward_hook(lambda *_: None),
                lambda: self.loss.register_forward_hook(lambda *_: None),
                lambda: self.descent.register_step_post_hook(lambda *_: None),
            ]
        )()
        self.refused("hook", *self.batch())
        handle.remove()

    def _forward_replaced(self) -> None:
        module: Any = self.r.choice([*self.ours.modules(), self.loss])
        module.forward = lambda *x: x[0]
        self.refused("forward", *self.batch())
        del module.forward

    def _wrong_batch(self) -> None:
        x, y = self.batch()
        wrong = self.r.choice([(x[:, :-1], y), (x.float(), y), (x, y[:-1]), (x.numpy(), y), (x, None)])
        self.refused("batch", *wrong)

    def _autocast(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            self.refused("autocast", *self.batch())

    def _layer_replaced(self) -> None:
        name, linear = self.r.choice([(n, m) for n, m in self.ours.named_modules() if isinstance(m, nn.Linear)])
        parent = self.ours.get_submodule(name.rpartition(".")[0])
        other = mg.Dense.from_linear(linear)
        setattr(parent, name.rpartition(".")[2], other)
        self.refused("layer", *self.batch())
        setattr(parent, name.rpartition(".")[2], linear)

    def run(self, steps: int) -> None:
        events: list[Callable[[], None]] = [
            self._number, self._number, self._freeze, self._load, self._by_autograd, self._written, self._velocity_elsewhere,
            self._shared, self._new, self._hook, self._forward_replaced, self._wrong_batch, self._autocast,
            self._layer_replaced,
        ]  # fmt: skip
        for _ in range(steps):
            if self.r.random() < 0.4:
                self.r.choice(events)()
            self.take(*self.batch())
            for schedule in self.schedules:
                schedule.step()
            self.compare()


@pytest.mark.parametrize("seed", range(12))
def test_random_trainings(seed: int) -> None:
    Training(seed).run(steps=12)


@pytest.mark.parametrize("value", [Decimal("0.2"), "0.2", None, 1j], ids=str)
def test_an_option_that_is_no_real_number_is_refused_in_a_sentence(value: Any) -> None:
    model = mg.MLP([3, 2])
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    step = mg.TrainStep(model, nn.MSELoss(), optimizer)
    x, y = torch.ones(2, 3), torch.ones(2, 2)
    step(x, y)
    before = copy.deepcopy(model.state_dict())
    optimizer.param_groups[0]["lr"] = value
    with pytest.raises(TypeError, match=r"expected `lr` to be a real number, got .*"):
        step(x, y)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
