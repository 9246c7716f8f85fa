"""The steps of a training step, one file for each kind, in the order in which they happen."""
