"""What a module computes in TorchScript, which can compile neither a backward pass by hand nor an `Activation`."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn


class Scriptable(nn.Module):
    """A module whose `forward` calls `sigma_in_script` while it is scripted: `_sigma`, traced when `torch.jit.script` asks.

    Nothing else changes: what `__prepare_scriptable__` returns, `torch.jit.script` puts into the model that it was given.
    """

    def _sigma(self, z: Tensor) -> Tensor:
        raise NotImplementedError

    @torch.jit.unused
    def __prepare_scriptable__(self) -> nn.Module:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.__dict__["sigma_in_script"] = torch.jit.trace(
                lambda z: self._sigma(z), torch.ones(1), check_trace=False
            )
        return self

    @torch.jit.unused
    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("sigma_in_script", None)  # it can be neither copied nor pickled
        return state
