"""The switch between the backward pass written by hand and PyTorch's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock


_inside = 0  # how many `by_autograd` blocks are open, in all threads
_counting = Lock()


def is_by_autograd() -> bool:
    """Whether layers and losses leave the backward pass to autograd."""
    return _inside > 0


@contextmanager
def by_autograd() -> Iterator[None]:
    """Inside, `dense` and the losses compute the same values, but autograd differentiates them.

    A forward pass made inside keeps autograd's backward pass, wherever `backward()` is called. For comparing the two;
    the switch is the process's, not the thread's, and costs nothing: another thread merely gets autograd's gradients.
    """
    global _inside
    with _counting:
        _inside += 1
    try:
        yield
    finally:
        with _counting:
            _inside -= 1
