"""The four equations of backpropagation, by hand, on plain tensors. This file is all of the maths.

Symbols, as in the text they come from (Nielsen, *Neural Networks and Deep Learning*, chapter 2):

    a       activation of a layer: what it hands on; of the layer below: what it is given
    z       weighted sum: z = w a + b
    sigma   activation function: a = sigma(z)
    C       cost, the mean over the batch
    delta   error of a layer: dC/dz
    eta     learning rate

    delta^L = dC/da^L * sigma'(z^L)                       output error
    delta^l = ((w^{l+1})^T delta^{l+1}) * sigma'(z^l)     backpropagated error
    dC/dw^l = delta^l (a^{l-1})^T,   dC/db^l = delta^l    gradients
    w^l    := w^l - eta dC/dw^l                           gradient descent

The text writes one example as a column; PyTorch keeps a batch of r examples as rows. So each formula stands here
transposed: w a is `a @ w.T`, w^T delta is `delta @ w`, and delta a^T, summed over the batch, is `delta.T @ a`.

Shapes: r rows (examples), n features in, m features out; weight (m, n), bias (m,). Every function takes floating point
or complex tensors of one dtype, returns a new tensor of that dtype and changes nothing, unless `out` says where to write.
For complex tensors the gradient is PyTorch's, the conjugate Wirtinger derivative: what is transposed is also conjugated.
The mean over the batch is taken once, in dC/da^L; after that gradients are sums over the rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manualgrad.matrix_products import add_product, times_weight, times_weight_transposed, write_product


if TYPE_CHECKING:
    from manualgrad.activation.built_in import Activation


def weighted_sum(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """z = w a + b.

    a (..., n), weight (m, n), bias (m,) or None -> z (..., m).
    """
    return times_weight_transposed(a, weight, bias)


def output_error(cost_gradient: Tensor, activation: Activation, kept: Tensor | None) -> Tensor:
    """delta = dC/da * sigma'(z), element by element.

    cost_gradient (..., m) is dC/da; `kept` (..., m) is what sigma' is computed from: a if `activation.from_output`,
    else z (None for the identity, whose sigma' is 1) -> delta (..., m).
    """
    if kept is None:
        return cost_gradient
    if activation.product is not None and not torch.is_grad_enabled():  # not every kernel can be differentiated again
        return activation.product(cost_gradient, kept)  # the same product, in one pass over memory
    derivative = activation.derivative(kept)
    return cost_gradient * (derivative.conj() if derivative.dtype.is_complex else derivative)


def backpropagated_error(weight: Tensor, delta: Tensor) -> Tensor:
    """dC/da of the layer below: w^T delta.

    weight (m, n), delta (..., m) -> (..., n). Times sigma'(z) of the layer below, which is `output_error` once more,
    it is that layer's delta. The equation's two factors stand apart because each layer knows only its own sigma.
    """
    return times_weight(delta, weight.conj() if weight.dtype.is_complex else weight)


def weight_gradient(delta: Tensor, a: Tensor, out: Tensor | None = None) -> Tensor:
    """dC/dw = delta a^T, summed over the rows.

    delta (r, m), a (r, n) -> (m, n).
    """
    if out is not None:
        return write_product(out, delta, a)
    return torch.mm(delta.t(), a.conj() if a.dtype.is_complex else a)


def add_weight_gradient(target: Tensor, delta: Tensor, a: Tensor, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """target := beta target + alpha dC/dw, in place: one matrix product that reads and writes the target once.

    target (m, n), delta (r, m), a (r, n) -> target. With target = w and alpha = -eta it is gradient descent without dC/dw
    ever being written down.
    """
    return add_product(target, delta, a, alpha=alpha, beta=beta)


def inner_products(delta: Tensor, a: Tensor, other_delta: Tensor, other_a: Tensor) -> Tensor:
    """The inner product of two gradients from their factors: the sum of (delta other_delta^T) * (a other_a^T).

    delta (..., r, m), a (..., r, n), other_delta (..., s, m), other_a (..., s, n) -> (...). With itself it is |dC/dw|^2, from
    matrices of only (r, r). Entries of both signs cancel in the sum: take it in float64.
    """
    return torch.sum((delta @ other_delta.mT) * (a @ other_a.mT), dim=(-2, -1))


def bias_gradient(delta: Tensor) -> Tensor:
    """dC/db = delta, summed over the rows.

    delta (r, m) -> (m,).
    """
    return delta.sum(0)


def weighted_sum_tangent(
    a: Tensor, weight: Tensor, a_tangent: Tensor | None, weight_tangent: Tensor | None, bias_tangent: Tensor | None
) -> Tensor | None:
    """z' = w a' + w' a + b': how z changes when a, w and b change in the directions a', w', b'. None is no change.

    a and a' (..., n), weight and w' (m, n), b' (m,) -> z' (..., m).
    """
    z_tangent = None if a_tangent is None else weighted_sum(a_tangent, weight, bias_tangent)
    if weight_tangent is not None:
        moved = weighted_sum(a, weight_tangent, bias_tangent if z_tangent is None else None)
        return moved if z_tangent is None else z_tangent + moved
    if z_tangent is None and bias_tangent is not None:
        return bias_tangent.expand(*a.shape[:-1], -1)
    return z_tangent


def activation_tangent(z_tangent: Tensor, activation: Activation, kept: Tensor | None) -> Tensor:
    """a' = sigma'(z) * z': how a changes when z changes in the direction z'. `kept` as for `output_error`.

    z' (..., m) -> (..., m).
    """
    return z_tangent if kept is None else activation.derivative(kept) * z_tangent


def descent(w: Tensor, gradient: Tensor, eta: float | Tensor, out: Tensor | None = None) -> Tensor:
    """w - eta * gradient: one step downhill.

    w and gradient of one shape, eta a number or a one-element tensor -> the new w; `out=w` writes it in place.
    """
    if isinstance(eta, Tensor):  # stays on its device: reading it would stall the GPU and break a captured graph
        return torch.addcmul(w, gradient, eta, value=-1, out=out)
    return torch.add(w, gradient, alpha=-eta, out=out)
