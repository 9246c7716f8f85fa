"""The exchange of one model's gradients at the end of each backward pass that synchronises.

When DDP runs the model's forward pass, and not inside `no_sync`, the exchange is armed. Hooks on what the model returns
queue a callback at the end of the backward pass, as DDP's own reducer does. The callback exchanges, if a parameter
of the model has received a gradient in that pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from manualgrad.distributed import ddp
from manualgrad.distributed.all_reduce import average
from manualgrad.distributed.cost import Costs
from manualgrad.distributed.gather import gathered
from manualgrad.distributed.offer import Kind, Received, agreement, gathered_offers, offer
from manualgrad.factored.factors import Content
from manualgrad.factored.gradient import FactoredGradient
from manualgrad.factored.requests import Request


class Exchange:
    """Averages the gradients of some weights of a model over the processes, by their factors where that is cheaper.

    Args:
        model: what DDP is going to wrap. Hooks on it lead here; `stop` removes them.
        weights: by their names in the model, the same ones in the same order in every process.
        group: the processes of DDP.
        costs: the same numbers in every process.
    """

    def __init__(
        self, model: nn.Module, weights: dict[str, nn.Parameter], group: dist.ProcessGroup, costs: Costs
    ) -> None:
        self.names, self.weights = list(weights), list(weights.values())
        self.ddp_group, self.costs = group, costs
        self.group = ddp.twin_of(group, self.weights[0].device)
        self.world = dist.get_world_size(group)
        self._holders = [model.get_submodule(name.rpartition(".")[0]) for name in self.names]
        self._ignored_before = ddp.ignored(model)
        ddp.set_ignored(model, self._ignored_before | ddp.names_of(model, self.weights))
        self._request = Request(self.weights)
        self._received = [Received() for _ in self.weights]
        self._armed = False
        self._queued: int | None = None  # the backward pass at whose end the callback runs
        self._touched = False  # a parameter has received a gradient in it
        self._handles: list[Any] = [
            model.register_forward_pre_hook(self._check),
            model.register_forward_hook(self._after_forward),
        ]
        self._without_hook = list(model.parameters())  # hooks can only be on what is not frozen
        self._hook_parameters()

    def stop(self, model: nn.Module) -> None:
        """Leave the model as it was before: a new DDP around it averages all of its gradients."""
        for handle in self._handles:
            handle.remove()
        ddp.set_ignored(model, self._ignored_before)
        for w in self.weights:
            del w._ddp_ignored  # type: ignore[attr-defined]

    # Arming, queueing.

    @torch.compiler.disable
    def _check(self, model: nn.Module, inputs: Any) -> None:
        wrapper = ddp.running()
        if wrapper is not None:
            self._check_wrapper(model, wrapper)
            self._hook_parameters()

    def _check_wrapper(self, model: nn.Module, wrapper: nn.parallel.DistributedDataParallel) -> None:
        check_wrapper(self, model, wrapper)

    @torch.compiler.disable
    def _after_forward(self, model: nn.Module, inputs: Any, output: Any) -> None:
        wrapper = ddp.running()
        if wrapper is not None and torch.is_grad_enabled() and wrapper.require_backward_grad_sync:
            self.arm(output)

    def arm(self, output: Any) -> None:
        """Exchange at the end of the backward pass through this output of the model."""
        self._armed, self._queued, self._touched = True, None, False
        for tensor in ddp.tensors_in(output):
            if tensor.requires_grad:
                tensor.register_hook(self._backward_begins)

    def _backward_begins(self, gradient: Tensor) -> None:
        if self._armed and self._queued != ddp.backward_pass():  # else it is queued; or it failed, and is tried again
            self._queue()

    def _gradient_arrives(self, parameter: Tensor) -> None:
        self._touched = self._armed
        if self._armed and self._queued is None:  # the loss was not computed from what the model returned
            self._queue()

    def _queue(self) -> None:
        self._queued = ddp.backward_pass()
        ddp.at_the_end_of_backward(self._backward_ends)

    def _hook_parameters(self) -> None:
        still_frozen = []
        for p in self._without_hook:
            if p.requires_grad:
                self._handles.append(p.register_post_accumulate_grad_hook(self._gradient_arrives))
            else:
                still_frozen.append(p)
        self._without_hook = still_frozen

    def _backward_ends(self) -> None:
        self._queued = None
        if self._touched:  # not so after torch.autograd.grad by the inputs
            self._armed = self._touched = False
            with torch.no_grad():
                self._exchange()

    # Exchanging.

    def _exchange(self) -> None:
        own = [offer(w.grad, received) for w, received in zip(self.weights, self._received, strict=True)]
        everyone = gathered_offers(own, self.weights[0].device, self.group)
        self._check_factors(everyone)
        agreed = [agreement(w, offers, self.costs) for w, offers in zip(self.weights, everyone, strict=True)]
        factored = [i for i, agreement in enumerate(agreed) if agreement.kind is Kind.FACTORS]
        dense = [i for i, agreement in enumerate(agreed) if agreement.kind is Kind.DENSE]
        weights, agreements = [self.weights[i] for i in factored], [agreed[i] for i in factored]
        new = [_factors(w.grad)[a.kept :] for w, a in zip(weights, agreements, strict=True)]
        for i, summands in zip(factored, gathered(weights, new, agreements, self.group), strict=True):
            kept = agreed[i].kept
            _put(self.weights[i], kept, summands)
            self._received[i].keep(kept, summands)
        average([self.weights[i] for i in dense], self.group)

    def _check_factors(self, everyone: list[tuple[Any, ...]]) -> None:
        """Raises RuntimeError in all processes if the factors of one were changed in place."""
        for name, w, offers in zip(self.names, self.weights, everyone, strict=True):
            ranks = [rank for rank, o in enumerate(offers) if o.kind == Kind.INVALID]
            if ranks:
                for f in _factors(w.grad):
                    f.check_versions(f"exchanging it with other processes, as the gradient of {name!r}")
                raise RuntimeError(
                    f"exchange_factors expected the factors of the gradient of {name!r} unchanged since the backward pass "
                    f"in every process, got some that were changed in place in process {ranks[0]}, which says more."
                )

    # Copies of the model have no exchange: their hooks only say so.

    def __deepcopy__(self, memo: dict[int, Any]) -> NoExchange:
        return NoExchange(self._ignored_before)

    def __reduce__(self) -> tuple[type[NoExchange], tuple[set[str]]]:
        return NoExchange, (self._ignored_before,)


class NoExchange(Exchange):
    """What a copy of a model has instead of the exchange."""

    def __init__(self, ignored_before: set[str]) -> None:
        self._ignored_before = ignored_before

    def _check_wrapper(self, model: nn.Module, wrapper: nn.parallel.DistributedDataParallel) -> None:
        raise RuntimeError(
            "DistributedDataParallel has been told to leave weights of this model alone, but their gradients are not "
            "exchanged: it is a copy of a model that was given to exchange_factors. "
            "Call exchange_factors on the copy too, before DistributedDataParallel."
        )

    def _after_forward(self, model: nn.Module, inputs: Any, output: Any) -> None:
        pass  # under DDP, the check has raised


def forget_copied_exchange(model: nn.Module) -> None:
    """Take from a copy what it has from the model that it was copied from."""
    for hooks in (model._forward_hooks, model._forward_pre_hooks):
        for key, hook in list(hooks.items()):
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, NoExchange):
                del hooks[key]
                ddp.set_ignored(model, owner._ignored_before)


def exchange_of(model: nn.Module) -> Exchange | None:
    """The exchange that `exchange_factors` has set up for the model, if it has."""
    owners = [getattr(hook, "__self__", None) for hook in model._forward_hooks.values()]
    return next((owner for owner in owners if type(owner) is Exchange), None)


def check_wrapper(exchange: Exchange, model: nn.Module, wrapper: nn.parallel.DistributedDataParallel) -> None:
    """Raises RuntimeError if the exchange would not do what this DDP is about to do for the other parameters."""
    wrong = None
    if not ddp.leaves_alone(wrapper, exchange.names):
        if wrapper.module is model:
            wrong = "to be called before DistributedDataParallel, got a model that was wrapped already"
        else:
            wrong = "the very module that DistributedDataParallel wraps, got a part of it"
    elif wrapper.module is not model:
        wrong = "the very module that DistributedDataParallel wraps, got another one"
    elif dist.get_process_group_ranks(wrapper.process_group) != dist.get_process_group_ranks(exchange.ddp_group):
        wrong = (
            f"the process group of DistributedDataParallel, got one of {dist.get_process_group_ranks(exchange.ddp_group)} "
            f"for {dist.get_process_group_ranks(wrapper.process_group)}"
        )
    if wrong:
        raise RuntimeError(
            f"exchange_factors expected {wrong}. "
            "Write DistributedDataParallel(exchange_factors(model, process_group), process_group=process_group)."
        )
    if ddp.shadows_joined_processes(wrapper):
        raise RuntimeError(
            "exchange_factors expected every process to run the same number of batches, got DistributedDataParallel.join(), "
            "which would stand in for a process without batches in DDP's collectives only. Give each process as many batches, "
            "empty ones if need be, or use join(throw_on_early_termination=True)."
        )
    for name, holder, w in zip(exchange.names, exchange._holders, exchange.weights, strict=True):
        if holder._parameters.get(name.rpartition(".")[2]) is not w:
            raise RuntimeError(
                f"exchange_factors expected the parameters that the model had when it was called, got another one as {name!r}. "
                "Replace parameters first, then call exchange_factors, then DistributedDataParallel."
            )
        if hasattr(w, "_in_backward_optimizers"):
            raise RuntimeError(
                f"exchange_factors expected {name!r} to be updated after the backward pass, got an optimizer in the backward "
                "pass, which would step before the gradients are exchanged. Call optimizer.step() instead."
            )


def _factors(gradient: Tensor | None) -> tuple[Any, ...]:
    return gradient.content.factors if isinstance(gradient, FactoredGradient) else ()


def _put(weight: nn.Parameter, kept: int, summands: list[Any]) -> None:
    """Make the mean the weight's gradient: in the same object, so that everyone who holds it sees it."""
    gradient = weight.grad
    if isinstance(gradient, FactoredGradient):
        gradient.content.factors = (*gradient.content.factors[:kept], *summands)
    else:
        weight.grad = FactoredGradient.of(weight.shape, weight.dtype, weight.device, Content(tuple(summands)))
