"""A training step recorded as kernel calls on fixed memory, and replayed."""
