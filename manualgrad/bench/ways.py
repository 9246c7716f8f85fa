"""One training step of one case, in each of the ways that are compared. All start from the same weights.

A step is everything between two batches: zero_grad, forward, loss, backward, clipping if asked for, and the update.
A way is declared by its name in WAYS and a function of the case, which raises with a sentence where it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import manualgrad as mg
from manualgrad.bench import other_libraries
from manualgrad.bench.case import Case, Task
from manualgrad.bench.optimizers import FORMS, for_ours, has_form, of_torch


MAX_NORM = 0.01  # below the norm of the first gradients, so that clipping does scale them
OURS = ("converted", "factored", "TrainStep")


class Way(NamedTuple):
    """One way to take the step. `weights`: what the model's parameters have become, in their order, without frozen ones."""

    step: Callable[[], Any]
    weights: Callable[[], list[Tensor]]
    task: Task | None = None
    optimizers: Sequence[Optimizer] = ()
    expected: Way | None = None  # whose weights it should reach, if not those of the first way


def _of(task: Task, step: Callable[[], Any], optimizers: Sequence[Optimizer]) -> Way:
    return Way(step, lambda: [p.detach() for p in task.model.parameters() if p.requires_grad], task, optimizers)


def _loop(task: Task, optimizer: Optimizer, clip: bool, wrap: Callable[[Any], Any] = lambda function: function) -> Way:
    """The loop that everybody writes. `wrap`: forward and loss as one, clipping and the optimizer's step as another."""
    parameters = list(task.model.parameters())

    def update() -> None:
        if clip:
            nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()

    cost, update = wrap(task.cost), wrap(update)

    def step() -> None:
        optimizer.zero_grad()
        cost().backward()
        update()

    return _of(task, step, [optimizer])


def _plain(case: Case, form: dict[str, Any]) -> Way:
    if not has_form(case.optimizer, form):
        raise ValueError(f"{case.optimizer} has no {', '.join(form)} form.")
    task = case.plain()
    return _loop(task, of_torch(case.optimizer, task.model.parameters(), form), case.clip)


def _by_hand(case: Case, factored: bool) -> Way:
    task = case.by_hand(factored)
    return _loop(task, for_ours(case.optimizer, task.model.parameters(), factored), case.clip)


def _train_step(case: Case) -> Way:
    task = case.by_hand()
    optimizer = for_ours(case.optimizer, task.model.parameters(), factored=True)
    step = mg.TrainStep(task.model, task.loss, optimizer, max_norm=MAX_NORM if case.clip else None)  # type: ignore[arg-type]
    return _of(task, partial(step, task.inputs, task.targets), [optimizer])


def _in_backward(case: Case) -> Way:
    """The update inside the backward pass, each gradient freed at once."""
    if case.clip:
        raise ValueError("It cannot clip: the global norm is known only after the backward pass.")
    task = case.plain()
    optimizers: list[Optimizer] = []
    for parameter in filter(lambda p: p.requires_grad, task.model.parameters()):
        optimizers.append(of_torch(case.optimizer, [parameter], {}))

        def update(parameter: Tensor, optimizer: Optimizer = optimizers[-1]) -> None:
            optimizer.step()
            parameter.grad = None

        parameter.register_post_accumulate_grad_hook(update)
    return _of(task, lambda: task.cost().backward(), optimizers)


def _compiled(case: Case) -> Way:
    task = case.plain()
    optimizer = of_torch(case.optimizer, task.model.parameters(), {})
    return _loop(task, optimizer, case.clip, partial(torch.compile, dynamic=False))


def _elsewhere(case: Case, step_of: Callable[..., tuple], **options: Any) -> Way:
    """A step of another library: a net alone, unclipped."""
    if case.net is None or case.clip:
        raise ValueError(f"It is written here for {'nets alone' if case.net is None else 'steps without clipping'}.")
    step, weights, open_ended = step_of(case, case.net, **options)
    return Way(step, weights, expected=_plain(case._replace(model=open_ended), {}) if open_ended else None)


WAYS: dict[str, Callable[[Case], Way]] = {
    **{name: partial(_plain, form=form) for name, form in FORMS.items()},
    "converted": partial(_by_hand, factored=False),
    "factored": partial(_by_hand, factored=True),
    "TrainStep": _train_step,
    "optimizer in backward": _in_backward,
    "torch.compile": _compiled,
    "JAX": partial(_elsewhere, step_of=other_libraries.jax_step),
    "scikit-learn": partial(_elsewhere, step_of=other_libraries.sklearn_step),
    "NumPy float32": partial(_elsewhere, step_of=other_libraries.numpy_step, dtype="float32"),
    "NumPy float64": partial(_elsewhere, step_of=other_libraries.numpy_step, dtype="float64"),
}
