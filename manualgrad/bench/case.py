"""What is trained in a measurement: a model, its batch and its loss, the same for every way to train it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.bench.optimizers import GRADIENT_DESCENT, OPTIMIZERS, of_torch


TORCH_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),  # saves autograd a tensor per layer; the others cannot
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}
LOSSES: dict[str, type[nn.Module]] = {
    "mse": nn.MSELoss,
    "cross_entropy": nn.CrossEntropyLoss,
    "binary_cross_entropy": nn.BCEWithLogitsLoss,
}
NET = re.compile(r"([1-9]\d*(?:-[1-9]\d*)+) (relu|sigmoid|tanh)(?: (relu|sigmoid|tanh))?")
NAME = re.compile(r"[\w.]+:\w+")


class CaseError(ValueError):
    """What was to be measured cannot be built or trained. The message says what was expected."""


class Net(NamedTuple):
    """A stack of dense layers, such as "784-30-10 sigmoid", or "784-30-10 sigmoid sigmoid" with sigma on the outputs too."""

    sizes: list[int]
    activation: str
    output_activation: str | None

    def plain(self) -> nn.Sequential:
        """The net of nn.Linear and activation modules."""
        layers: list[nn.Module] = []
        for n, m in zip(self.sizes[:-1], self.sizes[1:], strict=True):
            layers += [nn.Linear(n, m), TORCH_ACTIVATIONS[self.activation]()]
        last = [TORCH_ACTIVATIONS[self.output_activation]()] if self.output_activation else []
        return nn.Sequential(*layers[:-1], *last)

    def dense(self) -> mg.MLP:
        """The net of `Dense` layers; after the same seed, with the same weights."""
        return mg.MLP(self.sizes, self.activation, output_activation=self.output_activation)


class Task(NamedTuple):
    """A model and what it is trained on. Without targets, the model's output is its loss, or has it as `.loss`."""

    model: nn.Module
    inputs: Any
    targets: Any
    loss: Callable[[Any, Any], Tensor]

    def outputs(self) -> Any:
        if isinstance(self.inputs, Mapping):
            return self.model(**self.inputs)
        return self.model(*self.inputs) if isinstance(self.inputs, tuple) else self.model(self.inputs)

    def cost(self) -> Tensor:
        outputs = self.outputs()
        return getattr(outputs, "loss", outputs) if self.targets is None else self.loss(outputs, self.targets)


class Case(NamedTuple):
    """What is measured. Its arguments are those of `measure`."""

    model: str
    batch: int
    optimizer: str = GRADIENT_DESCENT
    loss: str | None = None
    clip: bool = False
    device: str = "cpu"

    @property
    def net(self) -> Net | None:
        """None for a model of one's own."""
        found = NET.fullmatch(self.model)
        return Net([int(size) for size in found[1].split("-")], found[2], found[3]) if found else None

    def check_names(self) -> None:
        """Raises CaseError for what can be told to be wrong before anything is imported."""
        if self.net is None and not NAME.fullmatch(self.model):
            raise CaseError(
                "Expected the model to be a net such as '784-30-10 sigmoid' (activations: "
                f"{', '.join(TORCH_ACTIVATIONS)}) or a function such as 'package.module:make', got {self.model!r}."
            )
        if self.optimizer not in OPTIMIZERS:
            raise CaseError(f"Expected an optimizer, one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}.")
        if self.loss is not None and self.net is not None and self.loss != "mse":
            raise CaseError(f"Expected a net to be trained with the loss 'mse', got {self.loss!r}. Leave it out.")
        if self.loss is not None and self.loss not in LOSSES and not NAME.fullmatch(self.loss):
            raise CaseError(
                f"Expected a loss, one of {', '.join(LOSSES)} or a function such as 'package.module:loss', got {self.loss!r}."
            )

    def plain(self) -> Task:
        """Plain PyTorch, always with the same weights and batch."""
        torch.manual_seed(0)
        model, inputs, targets = self._made() if self.net is None else (self.net.plain(), *self._batch(self.net))
        return Task(model.to(self.device), _on(self.device, inputs), _on(self.device, targets), self._loss(targets))

    def by_hand(self, factored: bool = False) -> Task:
        """The same of `Dense` layers: a net is made of them, a model of one's own is converted."""
        task = self.plain()
        torch.manual_seed(0)
        model = task.model if self.net is None else self.net.dense().to(self.device)
        return task._replace(model=mg.convert(model, factored=factored))

    def check(self) -> None:
        """Raises CaseError unless a step of plain PyTorch can be taken."""
        task = self.plain()
        try:
            task.outputs()
        except Exception as error:
            raise CaseError(f"Expected the model of {self.model} to take its inputs, got {said(error)}") from error
        try:
            cost = task.cost()
        except Exception as error:
            raise CaseError(
                f"Expected the loss {self.loss or type(task.loss).__name__} to take the model's outputs and the targets of "
                f"{self.model}, got {said(error)} Pass another with --loss."
            ) from error
        if not isinstance(cost, Tensor) or cost.numel() != 1 or not cost.isfinite():
            what = type(cost).__name__ if not isinstance(cost, Tensor) else f"a tensor {cost.detach()}"
            raise CaseError(
                f"Expected the loss of {self.model} to be one finite number, got {' '.join(what.split())[:200]}. Without "
                "targets, the model's output is the loss, or has it as .loss."
            )
        if not cost.requires_grad:
            raise CaseError(f"Expected parameters to train in {self.model}, got none: all are frozen, or it has none.")
        try:
            cost.backward()
            of_torch(self.optimizer, task.model.parameters(), {}).step()
        except Exception as error:
            raise CaseError(
                f"Expected {self.optimizer} to train {self.model} in plain PyTorch, got {said(error)}"
            ) from error

    def _made(self) -> tuple[nn.Module, Any, Any]:
        make = _named(self.model, "model")
        try:
            made = make(self.batch)
        except Exception as error:
            raise CaseError(
                f"Expected {self.model}(batch) to return (model, inputs, targets), got for {self.batch} {said(error)}"
            ) from error
        if not (isinstance(made, tuple) and len(made) == 3 and isinstance(made[0], nn.Module)):
            what = (
                f"({', '.join(type(part).__name__ for part in made)})" if type(made) is tuple else type(made).__name__
            )
            raise CaseError(f"Expected {self.model}(batch) to return (model, inputs, targets), got {what}.")
        return made

    def _batch(self, net: Net) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.batch)
        inputs = torch.randn(self.batch, net.sizes[0], generator=generator)
        targets = torch.rand if net.output_activation else torch.randn
        return inputs, targets(self.batch, net.sizes[-1], generator=generator)

    def _loss(self, targets: Any) -> Callable[[Any, Any], Tensor]:
        """By default mean squares, and the cross-entropy for class indices."""
        are_classes = isinstance(targets, Tensor) and not targets.is_floating_point()
        name = self.loss or ("cross_entropy" if are_classes else "mse")
        loss = LOSSES[name] if name in LOSSES else _named(name, "loss")
        return loss() if isinstance(loss, type) else loss


def said(error: Exception) -> str:
    """The kind of an error and its first line, as the end of a sentence."""
    line = next(iter(str(error).splitlines()), "").strip()
    return f"{type(error).__name__}: {line}".rstrip(": .") + "."


def _named(name: str, what: str) -> Any:
    """What "package.module:name" names."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:
        raise CaseError(
            f"Expected the {what} {name!r} to be there, got {said(error)} Run in the folder of its file, or install its package."
        ) from error


def _on(device: str, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return {key: _on(device, value) for key, value in batch.items()}
    if type(batch) in (tuple, list):
        return type(batch)(_on(device, value) for value in batch)
    return batch.to(device) if isinstance(batch, Tensor) else batch
