"""The sentence for a name that no activation has."""

import manualgrad as mg
from manualgrad.activation import activation as registry


BUILT_IN = "identity, relu, leaky_relu, elu, sigmoid, tanh, softplus, gelu, gelu_tanh, silu"


def unknown_activation(name: str, hint: str = "") -> str:
    """All of it: the built-in names in their order, then those of the activations that other tests have defined so far; and the
    hint, if one is expected."""
    assert ", ".join(mg.activations) == BUILT_IN
    known = ", ".join([BUILT_IN, *registry._user_defined])
    return (
        f"Unknown activation {name!r}. Known: {known}. "
        f"Define your own with mg.Activation({name!r}, value=..., derivative=...).{hint}"
    )
