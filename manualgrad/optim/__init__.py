"""Gradient descent: w := w - eta dC/dw, on dense and on factored gradients.

`gradient_descent` is the optimizer, `sgd_rule` its update of one parameter, which `TrainStep` takes too; `fused_sgd` enters
the fused step of `torch.optim.SGD` into the table of operations on factored gradients.
"""

import manualgrad.optim.fused_sgd  # noqa: F401
