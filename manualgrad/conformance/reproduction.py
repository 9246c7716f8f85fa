"""Write the lines of Python that show a failed check to the user."""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from manualgrad.conformance.case import Case


def first_line(case: Case, check: str, given: Sequence[Any]) -> str:
    """Python that makes inputs like those given, and the tensors by which is differentiated."""
    inputs, has_parameters = ", ".join(_like(x) for x in given), isinstance(case.original, nn.Module)
    bound = "reference = lambda *x, f=reference: f(*x, *layer.parameters()); " if case.takes_parameters else ""
    if check in ("gradcheck", "gradgradcheck", "jvp"):
        inputs = re.sub(r"torch\.(b?float16|float32)", "torch.float64", inputs)
        bound += "layer = __import__('copy').deepcopy(layer).double(); " if has_parameters else ""
    elif check == "complex" and has_parameters:
        bound += "layer = __import__('copy').deepcopy(layer).to(torch.complex128); "
    wanted = "(x for x in inputs if getattr(x, 'requires_grad', False))" + ", *layer.parameters()" * has_parameters
    returns_several = not isinstance(case.reference(*case.leaves()), Tensor)
    return f"{bound}inputs = [{inputs}]; wanted = [*{wanted}]{_JOINED if returns_several else ''}"


_JOINED = (
    "; layer, reference = (lambda *x, f=f: torch.cat([y.flatten() for y in torch.utils._pytree.tree_leaves(f(*x)) "
    "if y.requires_grad]) for f in (layer, reference))"
)


def _like(x: Any) -> str:
    if not isinstance(x, Tensor):
        return repr(x)
    if x.is_floating_point() or x.is_complex():
        one_sign = x.is_floating_point() and x.numel() > 0 and bool((x >= 0).all() or (x <= 0).all())
        made = f"torch.{'rand' if one_sign else 'randn'}({tuple(x.shape)}, dtype={x.dtype}, requires_grad=True)"
        factor = -1 if one_sign and bool((x < 0).any()) else 1
        if x.numel() and x.abs().max() > 10:
            factor *= round(float(x.abs().max())) // (1 if one_sign else 3)
        return made if factor == 1 else f"({factor} * {made}).detach().requires_grad_()"
    low, high = (int(x.min()), int(x.max()) + 1) if x.numel() else (0, 1)
    return f"torch.randint({low}, {high}, {tuple(x.shape)}).to({x.dtype})"
