"""`Trainer(strategy="ddp_factored")`: Lightning's "ddp", in which large `Dense` weights exchange factors."""

from __future__ import annotations

import torch
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from manualgrad.distributed import exchange_factors
from manualgrad.distributed.exchange import exchange_of


class FactoredDDPStrategy(DDPStrategy):
    """Lightning's `DDPStrategy` around `manualgrad.distributed.exchange_factors(module)`; checkpoints are those of "ddp".

    Args:
        bandwidth: bytes a second that each process can send; by default it is measured.
        options: those of `DDPStrategy`, which hands what it does not know to DDP.
    """

    strategy_name = "ddp_factored"

    def __init__(self, *args: object, bandwidth: float | None = None, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._bandwidth = bandwidth

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        exchange_factors(model, bandwidth=self._bandwidth)
        exchange = exchange_of(model)
        if exchange is None:
            rank_zero_info(
                "ddp_factored: no Dense weight is large enough to exchange factors; everything is left to DDP."
            )
        else:
            size = sum(w.nbytes for w in exchange.weights) / 2**20
            rank_zero_info(
                f"ddp_factored: {len(exchange.weights)} weights of {size:.1f} MiB exchange the factors of their gradients "
                f"where that costs less (at {exchange.costs.bandwidth:.2g} bytes a second); everything else is left to DDP."
            )
        return super()._setup_model(model)

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Under manual optimization the backward pass runs inside of DDP's forward pass."""
        super().pre_backward(closure_loss)
        module, wrapper = self.lightning_module, self.model
        assert module is not None
        if module.automatic_optimization or not isinstance(wrapper, DistributedDataParallel):
            return
        exchange = exchange_of(module)
        if exchange is not None and torch.is_grad_enabled() and wrapper.require_backward_grad_sync:
            exchange.arm(closure_loss)

    def teardown(self) -> None:
        """Leave the module as it was: another `Trainer` may fit it with another strategy."""
        module = self.lightning_module
        exchange = None if module is None else exchange_of(module)
        if module is not None and exchange is not None:
            exchange.stop(module)
        super().teardown()


StrategyRegistry.register(
    FactoredDDPStrategy.strategy_name,
    FactoredDDPStrategy,
    description='"ddp" in which the weights of large `manualgrad.Dense` layers exchange factors instead of gradients',
)
