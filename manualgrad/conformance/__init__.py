"""Prove a backward pass that was written by hand, anybody's, against a reference that autograd differentiates."""

from manualgrad.conformance.check_backward import check_backward
from manualgrad.conformance.result import Check, Conformance


__all__ = ["Check", "Conformance", "check_backward"]
