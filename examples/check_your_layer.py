"""A backward pass of your own with a bug, the report that names it, and the fix.

    python examples/check_your_layer.py

Takes about five seconds on two cores.

Expected output:

    the gradient by input[1] is 0.2 times what it should be; right for a batch of one: a sum over the batch is missing
    output           passed          as the reference's
    gradient         passed          of 2 tensors, as the reference's
    frozen inputs    passed          3 subsets of requires_grad
    ...
    in place         passed          inputs, upstream gradient and saved tensors untouched
    memory leak      passed          nothing outlives 100 calls
    ...
    torch.compile    passed          no graph break
    vmap             passed          outputs and per-sample gradients
    jvp              not supported   NotImplementedError: You must implement the jvp function for custom autograd.Function t...
    ...

    22 passed, 0 failed, 1 not supported, 3 not applicable.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

import manualgrad as mg


class ScaledSiLU(torch.autograd.Function):
    """y = scale * z * sigmoid(z), elementwise, with one learned scale for each feature. Its backward pass has a bug."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, scale: Tensor) -> Tensor:  # (r, m), (m,)
        return scale * z * torch.sigmoid(z)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        z, scale = ctx.saved_tensors
        s = torch.sigmoid(z)
        z_gradient = g * scale * s * (1 + z * (1 - s)) if ctx.needs_input_grad[0] else None
        return z_gradient, (g * z * s).mean(0) if ctx.needs_input_grad[1] else None


class Fixed(ScaledSiLU):
    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        z, scale = ctx.saved_tensors
        s = torch.sigmoid(z)
        z_gradient = g * scale * s * (1 + z * (1 - s)) if ctx.needs_input_grad[0] else None
        return z_gradient, (g * z * s).sum_to_size(scale.shape) if ctx.needs_input_grad[1] else None


def reference(z: Tensor, scale: Tensor) -> Tensor:
    return scale * F.silu(z)


torch.manual_seed(0)
z, scale = torch.randn(5, 3), torch.rand(3)

report = mg.check_backward(ScaledSiLU, reference, z, scale)
print(report.failed["gradient"].detail)

report = mg.check_backward(Fixed, reference, z, scale)
report.assert_ok(require=("vmap", "torch.compile"))  # what a test says
print(report)
