"""Data parallel training that sends the factors of the gradients instead of the gradients.

`exchange_factors(model)` is called before `DistributedDataParallel(model)`: `prepare` says for which weights, `exchange` when,
`offer` and `cost` how the processes agree on factors or gradients, `gather` and `all_reduce` send them. Users import
`exchange_factors` from here; the Lightning strategy also takes `exchange`.
"""

from manualgrad.distributed.prepare import exchange_factors


__all__ = ["exchange_factors"]

exchange_factors.__module__ = __name__
