"""The activation modules of `torch.nn` with a backward pass written by hand: subclasses that compute the same.

`convert` gives a module one of these classes, and nothing else of it changes. What a module saves for its backward pass, and
so what may be overwritten after it, is what the one of `torch.nn` saves: a for ReLU, Sigmoid, Tanh and for modules that work in
place, z for the others.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from manualgrad import equations
from manualgrad.activation.activation import Activation
from manualgrad.activation.torch_twins import TWINS, twin_of
from manualgrad.autograd.apply import is_plain_mode, plain_apply
from manualgrad.autograd.autocast import is_autocasting, without_autocast
from manualgrad.autograd.switch import is_by_autograd
from manualgrad.autograd.torch_state import is_any_autocast_enabled
from manualgrad.layers.torchscript import Scriptable


class ActivationFunction(torch.autograd.Function):
    """a = sigma(z), differentiated by `manualgrad.equations`: z and a of any shape (...). `in_place`: a is written over z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, activation: Activation, in_place: bool) -> Tensor:
        ctx.activation = activation
        ctx.set_materialize_grads(False)
        if in_place:
            assert activation.value_in_place is not None
            ctx.mark_dirty(z)
            a = activation.value_in_place(z)
        else:
            a = activation.value(z)
        ctx.save_for_backward(a if activation.from_output else z)
        return a

    @staticmethod
    def backward(ctx: Any, cost_gradient: Tensor | None) -> tuple[Tensor | None, None, None]:
        if cost_gradient is None:
            return None, None, None
        (kept,) = ctx.saved_tensors
        if not is_any_autocast_enabled():
            return equations.output_error(cost_gradient, ctx.activation, kept), None, None
        with without_autocast(cost_gradient):  # the dtypes were chosen in the forward pass
            return equations.output_error(cost_gradient, ctx.activation, kept), None, None


_apply = plain_apply(ActivationFunction)


class ByHand(Scriptable):
    """What the twins below have in common. By hand is the backward pass of plain tensors, of any order; PyTorch's own stands
    where there is another kind of tensor, forward mode, `torch.func`, `torch.compile` or `torch.jit.trace`, and where a leaf
    or a view would be written over: PyTorch knows beforehand when that is an error."""

    torch_class: type[Any]
    _only_sigma: Any = None  # of a class without options
    inplace = False  # the activations without this option

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self.sigma_in_script(input)  # type: ignore[operator]
        return self._by_hand(input)

    @torch.jit.unused
    def _sigma(self, z: Tensor) -> Tensor:
        return self.torch_class.forward(self, z)

    @torch.jit.unused
    def _by_hand(self, input: Tensor) -> Tensor:
        in_place = self.inplace
        if (
            not _is_plain(input)
            or not is_plain_mode()
            or (in_place and (input.is_leaf or input._is_view()))
            or is_by_autograd()
        ):
            return self.torch_class.forward(self, input)
        sigma = self._only_sigma or twin_of(self, from_output=in_place)
        assert sigma is not None
        if in_place:
            if sigma.value_in_place is not None:
                return _apply(input, sigma, True)
            return input.copy_(_apply(input.clone(), sigma, False))
        if is_any_autocast_enabled() and is_autocasting(
            input
        ):  # it computes some activations in float32; an empty tensor tells
            input = input.to(sigma.value(input.new_empty(0)).dtype)
        return _apply(input, sigma, False)


def _is_plain(input: Any) -> bool:
    """Whether there is something to differentiate, and it is neither a subclass nor sparse nor nested."""
    return (
        torch.is_grad_enabled()
        and type(input) is Tensor
        and input.requires_grad
        and input.layout is torch.strided
        and not input.is_nested
    )


def _twin(plain: type[nn.Module], options: tuple[str, ...]) -> type[ByHand]:
    """The subclass by hand of a class of `torch.nn`; the attributes `options` decide which sigma it is."""
    attributes = {"torch_class": plain, "_only_sigma": None if options else twin_of(plain()), "__module__": __name__}
    return cast(type[ByHand], type(plain.__name__, (ByHand, plain), attributes))


BY_HAND = {plain: _twin(plain, options) for plain, (_, options) in TWINS.items()}
globals().update({twin.__name__: twin for twin in BY_HAND.values()})  # where pickle looks for them: ReLU, Sigmoid, ...
