"""Every z, a, delta, gradient and update of one training step, taken on a copy of the model."""
