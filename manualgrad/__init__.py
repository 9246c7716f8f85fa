"""manualgrad: dense layers whose backpropagation is written by hand."""

from importlib.metadata import version

from manualgrad.activation.built_in import Activation, activations
from manualgrad.comparison.compare import compare
from manualgrad.comparison.result import Comparison
from manualgrad.conformance.check_backward import check_backward
from manualgrad.conformance.result import Conformance
from manualgrad.conversion.convert import conversion_report, convert, revert
from manualgrad.factored.densify import FactorsLostWarning, forbid_densify
from manualgrad.factored.gradient import FactoredGradient
from manualgrad.factored.requests import keep_factored
from manualgrad.layers.dense import Dense, dense
from manualgrad.layers.lazy_dense import LazyDense
from manualgrad.layers.mlp import MLP
from manualgrad.losses.loss import BinaryCrossEntropyLoss, QuadraticLoss, SoftmaxCrossEntropyLoss
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


def __dir__() -> list[str]:
    """The public names: what a prompt completes. The files behind them are imported as ever."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
