"""manualgrad: dense layers whose backpropagation is written by hand."""

import sys
from importlib.metadata import version
from types import FunctionType, ModuleType
from typing import Any

from manualgrad.activation.built_in import Activation, activation_named, activations, elu, leaky_relu, softplus
from manualgrad.comparison.compare import compare
from manualgrad.comparison.result import Comparison
from manualgrad.conformance.check_backward import check_backward
from manualgrad.conformance.result import Conformance
from manualgrad.conversion.convert import convert, revert
from manualgrad.conversion.report import conversion_report
from manualgrad.factored.densify import FactorsLostWarning, forbid_densify
from manualgrad.factored.gradient import FactoredGradient, _rebuilt
from manualgrad.factored.requests import keep_factored
from manualgrad.layers.dense import Dense, dense
from manualgrad.layers.lazy_dense import LazyDense
from manualgrad.layers.mlp import MLP
from manualgrad.losses.cross_entropy import BinaryCrossEntropyLoss, SoftmaxCrossEntropyLoss
from manualgrad.losses.quadratic import QuadraticLoss
from manualgrad.optim.gradient_descent import GradientDescent
from manualgrad.tracing.trace import Trace, TracedLayer, trace
from manualgrad.train_step.train_step import TrainStep


__version__ = version("manualgrad")

__all__ = [
    "LazyDense",
    "MLP",
    "Activation",
    "BinaryCrossEntropyLoss",
    "Comparison",
    "Conformance",
    "Dense",
    "FactoredGradient",
    "FactorsLostWarning",
    "GradientDescent",
    "QuadraticLoss",
    "SoftmaxCrossEntropyLoss",
    "Trace",
    "TracedLayer",
    "TrainStep",
    "activations",
    "check_backward",
    "compare",
    "conversion_report",
    "convert",
    "dense",
    "forbid_densify",
    "keep_factored",
    "revert",
    "trace",
]


for _public in map(globals().get, __all__):
    if isinstance(
        _public, type | FunctionType
    ):  # users import it from here: pickles and reprs say so, wherever its file is
        _public.__module__ = __name__


def _keep_names_of_0_1() -> None:
    """Let whole models that version 0.1 pickled load: they name what they are made of by the files of that version."""
    files: dict[str, list[Any]] = {
        "activation": [activation_named],
        "activations": [elu, leaky_relu, softplus],
        "dense": [Dense],
        "factored_gradient": [_rebuilt],
        "gradient_descent": [GradientDescent],
        "lazy_dense": [LazyDense],
        "losses": [BinaryCrossEntropyLoss, QuadraticLoss, SoftmaxCrossEntropyLoss],
        "mlp": [MLP],
    }
    for name, things in files.items():
        module = sys.modules.setdefault(f"{__name__}.{name}", ModuleType(name))
        for thing in things:
            setattr(module, thing.__name__, thing)


_keep_names_of_0_1()


def __dir__() -> list[str]:
    """The public names: what a prompt completes. The files behind them are imported as ever."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
