"""Gradients that stay outer products: dC/dw = delta a^T, kept as delta and a.

`gradient` is the tensor, `factors` what it holds, `operations` (with `reading_operations` and `list_operations`) what it does
in PyTorch's operations, `elementwise` and `fused_steps` how others read it a few rows at a time, `densify` what happens in all
that are left. `requests` says who asked, `choice` decides in each backward
pass; `norms` and `clipping` measure. Layers take `choice`, optimizers `requests`, users `FactoredGradient`, `keep_factored`
and `forbid_densify`.
"""

# So that nobody can hold a FactoredGradient without its table of operations.
import manualgrad.factored.fused_steps
import manualgrad.factored.list_operations
import manualgrad.factored.reading_operations  # noqa: F401
