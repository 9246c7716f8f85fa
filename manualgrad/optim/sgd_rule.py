"""The update of one parameter: from a dense gradient as `torch.optim.SGD` computes it, and from the factors of one.

g := dC/dw (negated if maximize) + weight_decay * w
v := momentum * v + (1 - dampening) * g        (the first v is g)
w := w - lr * g,   w - lr * v  with momentum,   w - lr * (g + momentum * v)  with nesterov
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from manualgrad.equations import descent
from manualgrad.factored.factors import on_host
from manualgrad.factored.gradient import FactoredGradient


def update(w: Tensor, gradient: Tensor, velocity: Tensor | None, options: Mapping[str, Any]) -> Tensor | None:
    """Change w, and v if there is one, in place; the gradient stays as it is.

    w, gradient, velocity (...), all of one shape; options: a param group, of which lr, momentum, dampening, weight_decay,
    nesterov and maximize are read. Returns v: None without momentum, else a tensor made in the first step.
    """
    if isinstance(gradient, FactoredGradient):
        if not gradient.is_dense:
            return _update_from_factors(w, gradient, velocity, options)
        gradient = gradient.densify()
    lr, momentum = on_host(options["lr"]), options["momentum"]
    if options["maximize"]:
        gradient = -gradient
    if options["weight_decay"] != 0:
        gradient = gradient.add(w, alpha=options["weight_decay"])
    if momentum != 0:
        if velocity is None:
            velocity = gradient.detach().clone()
        else:
            velocity.mul_(momentum).add_(gradient, alpha=1 - options["dampening"])
        gradient = gradient.add(velocity, alpha=momentum) if options["nesterov"] else velocity
    descent(w, gradient, eta=lr, out=w)  # w := w - eta * gradient
    return velocity


def _update_from_factors(
    w: Tensor, gradient: FactoredGradient, velocity: Tensor | None, options: Mapping[str, Any]
) -> Tensor | None:
    """The same rule, multiplied out so that nothing but v has the size of w: g is only ever added to w or to v."""
    lr, momentum, decay = on_host(options["lr"]), options["momentum"], options["weight_decay"]
    sign = -1.0 if options["maximize"] else 1.0
    if momentum == 0:
        gradient.add_to(w, alpha=-sign * lr, beta=1 - lr * decay if decay != 0 else 1.0)  # w := w - eta * gradient
        return None
    if velocity is None:
        velocity = gradient.to_dense().mul_(sign) if sign < 0 else gradient.to_dense()
        velocity.add_(w, alpha=decay) if decay != 0 else velocity
    else:
        gradient.add_to(velocity, alpha=sign * (1 - options["dampening"]), beta=momentum)
        velocity.add_(w, alpha=decay * (1 - options["dampening"])) if decay != 0 else velocity
    if not options["nesterov"]:
        descent(w, velocity, eta=lr, out=w)
    elif w.element_size() < 4:  # adding twice would round w twice, which shows: g + momentum * v, a few rows at a time
        for rows, g in gradient.tiles():
            g.mul_(sign).add_(w[rows], alpha=decay).add_(velocity[rows], alpha=momentum)
            descent(w[rows], g, eta=lr, out=w[rows])
    else:
        gradient.add_to(w, alpha=-sign * lr, beta=1 - lr * decay if decay != 0 else 1.0)
        descent(w, velocity, eta=lr * momentum, out=w)
    return velocity
