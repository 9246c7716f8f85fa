"""What a dense layer accepts: the errors that `dense` and `Dense` raise before anything is computed."""

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from manualgrad.activation.activation import Activation, known_names
from manualgrad.activation.did_you_mean import closest


def fit(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a dense layer takes these as they are, wherever they are. If not, the functions below say why."""
    return (
        isinstance(input, Tensor)
        and isinstance(weight, Tensor)
        and input.dtype == weight.dtype
        and (input.is_floating_point() or input.is_complex())
        and len(shape := weight.shape) == 2
        and input.shape[-1:] == shape[1:]
        and (bias is None or (isinstance(bias, Tensor) and bias.dtype == weight.dtype and bias.shape == shape[:1]))
    )


def check_tensors(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raises TypeError unless all are tensors, but for a bias of None."""
    for role, x in (("input", input), ("weight", weight), ("bias", bias)):
        if not isinstance(x, Tensor) and not (role == "bias" and x is None):
            raise TypeError(
                f"A dense layer expected a torch.Tensor as {role}, got {type(x).__name__}. Convert it with torch.as_tensor({role})."
            )


def check_arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None, weight_dtype: torch.dtype, bias_dtype: torch.dtype | None
) -> None:
    """Raises ValueError where the shapes do not fit, TypeError where the dtypes do not: those given, in which the layer will use
    weight and bias."""
    if weight.dim() != 2:
        raise ValueError(
            f"A dense layer expected a weight of shape (features out, features in), got {tuple(weight.shape)}. "
            "Reshape it to two dimensions."
        )
    features_out, features_in = weight.shape
    layer = f"A dense layer of {features_in} features in and {features_out} out"
    if input.dim() == 0 or input.size(-1) != features_in:
        raise ValueError(
            f"{layer} expected an input of shape (..., {features_in}), got {tuple(input.shape)}. "
            "Change the input's last dimension or make the layer of that size."
        )
    if input.dtype != weight_dtype:
        raise TypeError(
            f"{layer} expected an input of its weight's dtype {weight_dtype}, got {input.dtype}. "
            f"Convert the input with input.to({weight_dtype}) or the layer with layer.to(...)."
        )
    if not (input.is_floating_point() or input.is_complex()):
        raise TypeError(
            f"{layer} expected floating point or complex numbers, got {input.dtype}. Convert input and weight with .float()."
        )
    if bias is not None and (bias.dim() != 1 or bias.size(0) != features_out):
        raise ValueError(
            f"{layer} expected a bias of shape ({features_out},), got {tuple(bias.shape)}. Give one bias for each feature out."
        )
    if bias is not None and bias_dtype != weight_dtype:
        raise TypeError(
            f"{layer} expected a bias of its weight's dtype {weight_dtype}, got {bias_dtype}. "
            f"Convert it with bias.to({weight_dtype})."
        )


def check_devices(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raises ValueError where they are not on one device."""
    for role, x in (("weight", weight), ("bias", bias)):
        if x is not None and x.device != input.device:
            raise ValueError(
                f"A dense layer expected its {role} on the input's device {input.device}, got {x.device}. "
                "Move one of them with .to(...)."
            )


def check_definition(in_features: int, out_features: int, bias: object, caller: str) -> None:
    """What a layer may be made of. Raises TypeError unless both sizes are integers, ValueError for a negative one: zero is allowed,
    as in `nn.Linear`. TypeError for a bias that is not True, False, None (or 1, 0, or numpy's): an activation in its place would
    count as yes."""
    for name, size in (("in_features", in_features), ("out_features", out_features)):
        if not hasattr(size, "__index__"):
            raise TypeError(f"Dense expected `{name}` to be an integer, got {size!r}. Pass for example Dense(784, 30).")
        if size < 0:
            raise ValueError(f"Dense expected `{name}` to be at least 0, got {size}. Pass for example Dense(784, 30).")
    is_numpy_bool = getattr(getattr(bias, "dtype", None), "kind", None) == "b" and getattr(bias, "ndim", None) == 0
    if bias is None or is_numpy_bool or (isinstance(bias, int) and bias in (0, 1)):
        return
    meant = bias.name if isinstance(bias, Activation) else closest(bias, known_names())
    advice = "bias=True or bias=False" if meant is None else f"activation={meant!r}"
    raise TypeError(f"{caller} expected `bias` to be True or False, got {bias!r}. Pass {advice}.")


def check_linear(linear: nn.Linear) -> None:
    """Raises TypeError unless it is an `nn.Linear`, ValueError for a lazy one that has seen no batch."""
    if not isinstance(linear, nn.Linear):
        raise TypeError(
            f"Dense.from_linear expected an nn.Linear, got {type(linear).__name__}. Pass the linear layer itself."
        )
    if is_lazy(linear.weight):
        raise ValueError(
            f"Dense.from_linear expected a layer of known sizes, got {type(linear).__name__} before its first batch. "
            "Call it once, or use LazyDense."
        )
