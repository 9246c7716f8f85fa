"""Which of the four equations hold in a trace as they stand, found from its numbers.

The trace has the Dense layers alone. Where another part stands between two of them (dropout, normalisation, a reshape, a second
path), the input of the upper one is not the output of the lower one; where the optimizer is not plain gradient descent, the new
weight is not w - eta dC/dw. The page then says so and shows what did happen.
"""

import torch
from torch import Tensor

from manualgrad.equations import backpropagated_error, descent
from manualgrad.explain.traced_step import TracedLayer, TracedStep


def input_is_output_of(layer: TracedLayer, below: TracedLayer) -> bool:
    """Whether a^{l-1} goes into layer l unchanged."""
    return _same(layer.inputs, below.a)


def error_comes_from(layer: TracedLayer, above: TracedLayer) -> bool:
    """Whether dC/da^l = (w^{l+1})^T delta^{l+1}: the layer above is all that the cost sees of this one."""
    if layer.a.shape != above.inputs.shape:
        return False
    delta, weight = _wide(above.delta), _wide(above.weight_before)
    return _rounds_to(layer.cost_gradient, backpropagated_error(weight, delta), delta.abs() @ weight.abs())


def calls_of(layer: TracedLayer, trace: TracedStep) -> list[TracedLayer]:
    return [other for other in trace.layers if other.name == layer.name]


def total_gradients(layer: TracedLayer, trace: TracedStep) -> tuple[Tensor, Tensor | None]:
    """dC/dw and dC/db, summed over all calls of the layer."""
    calls = calls_of(layer, trace)
    biases = [call.grad_bias for call in calls if call.grad_bias is not None]
    return torch.stack([call.grad_weight for call in calls]).sum(0), torch.stack(biases).sum(0) if biases else None


def update_is_plain(layer: TracedLayer, trace: TracedStep) -> bool:
    """Whether the new parameters are w - eta dC/dw and b - eta dC/db, with the gradients summed over the layer's calls."""
    if trace.lr is None:
        return False
    weight_gradient, bias_gradient = total_gradients(layer, trace)
    steps = [(layer.weight_before, weight_gradient, layer.weight_after)]
    if layer.bias_before is not None and bias_gradient is not None and layer.bias_after is not None:
        steps.append((layer.bias_before, bias_gradient, layer.bias_after))
    for before, gradient, after in steps:
        old, slope = _wide(before), _wide(gradient)
        if not _rounds_to(after, descent(old, slope, eta=trace.lr), old.abs() + abs(trace.lr) * slope.abs()):
            return False
    return True


def inputs_are_those_of(trace: TracedStep) -> bool:
    """Whether layer 1 receives the model's inputs, if only in another shape."""
    received = trace.layers[0].inputs
    return trace.inputs.numel() == received.numel() and _same(trace.inputs.reshape(received.shape), received)


def outputs_are_those_of(trace: TracedStep) -> bool:
    """Whether the cost sees the last layer's a unchanged, and nothing else of it."""
    last = trace.layers[-1]
    return _same(trace.outputs, last.a) and _same(trace.output_gradient, last.cost_gradient)


def _same(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and torch.allclose(_wide(x), _wide(y), rtol=0, atol=0, equal_nan=True)


def _rounds_to(x: Tensor, expected: Tensor, magnitude: Tensor) -> bool:
    """|x - expected| within what rounding can do to terms that add up to `magnitude`."""
    if x.shape != expected.shape:
        return False
    tolerance = 32 * torch.finfo(x.dtype).eps * magnitude + torch.finfo(x.dtype).tiny
    close = (_wide(x) - expected).abs() <= tolerance
    return bool((close | ~expected.isfinite()).all())


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.complex128) if x.is_complex() else x.double()
