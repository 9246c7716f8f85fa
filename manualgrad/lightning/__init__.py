"""Training with Lightning: a module, data, callbacks. Needs the `lightning` extra; the digits need `demo`."""

from manualgrad.extras import require


require("lightning", extra="lightning", purpose="manualgrad.lightning")
require("torchmetrics", extra="lightning", purpose="manualgrad.lightning")

from manualgrad.lightning.autograd_audit import AutogradAudit, GradientMismatchError  # noqa: E402
from manualgrad.lightning.backprop_module import BackpropModule  # noqa: E402
from manualgrad.lightning.backprop_monitor import BackpropMonitor  # noqa: E402
from manualgrad.lightning.digits_data_module import DigitsDataModule  # noqa: E402
from manualgrad.lightning.known_warnings import silence  # noqa: E402
from manualgrad.lightning.random_states import KeepRandomStates  # noqa: E402
from manualgrad.lightning.resumable_loader import ResumableLoader  # noqa: E402


silence()

__all__ = [
    "AutogradAudit",
    "BackpropModule",
    "BackpropMonitor",
    "DigitsDataModule",
    "GradientMismatchError",
    "KeepRandomStates",
    "ResumableLoader",
]
