"""Losses whose derivative dC/da is written by hand.

`loss` says what a loss is; `quadratic` and `cross_entropy` hold the losses, `names` what they are called on a command line.
"""
