"""Training with Lightning: a module, a data module and callbacks. Needs the `lightning` extra; the digits need `demo`.

Users import the names below from here.
"""

from manualgrad.extras import require


require("lightning", extra="lightning", purpose="manualgrad.lightning")
require("torchmetrics", extra="lightning", purpose="manualgrad.lightning")

from manualgrad.lightning.audit import AutogradAudit, GradientMismatchError  # noqa: E402
from manualgrad.lightning.checkpoint_io import SafeCheckpointIO  # noqa: E402
from manualgrad.lightning.data import DigitsDataModule  # noqa: E402
from manualgrad.lightning.factored_strategy import FactoredDDPStrategy  # noqa: E402
from manualgrad.lightning.hand_written_backprop import HandWrittenBackprop  # noqa: E402
from manualgrad.lightning.keep_random_states import KeepRandomStates  # noqa: E402
from manualgrad.lightning.loader import ResumableLoader  # noqa: E402
from manualgrad.lightning.module import BackpropModule  # noqa: E402
from manualgrad.lightning.monitor.backprop_monitor import BackpropMonitor  # noqa: E402
from manualgrad.lightning.train_step_module import TrainStepModule  # noqa: E402


__all__ = [
    "AutogradAudit",
    "BackpropModule",
    "BackpropMonitor",
    "DigitsDataModule",
    "FactoredDDPStrategy",
    "GradientMismatchError",
    "HandWrittenBackprop",
    "KeepRandomStates",
    "ResumableLoader",
    "SafeCheckpointIO",
    "TrainStepModule",
]

for _public in __all__:  # users import it from here: pickles and reprs say so, wherever its file is
    globals()[_public].__module__ = __name__
