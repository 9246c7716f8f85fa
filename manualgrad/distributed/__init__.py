"""Data parallel training that sends the factors of the gradients instead of the gradients.

`exchange_factors(model)` is called before `DistributedDataParallel(model)`. Others take only that name.
"""

from manualgrad.distributed.exchange_factors import exchange_factors


__all__ = ["exchange_factors"]
