"""Prove a backward pass that was written by hand, anybody's, against a reference that autograd differentiates. Others take
`check_backward` and its `Conformance`."""
