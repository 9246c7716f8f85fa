"""The switch between the backward pass written by hand and PyTorch's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock


_inside = 0  # how many `by_autograd` blocks are open, in all threads
_counting = Lock()
_something_stood_back = False  # since the block was opened; a flag and no count, which torch.compile would guard


def is_by_autograd() -> bool:
    """Whether layers and losses leave the backward pass to autograd. Those that ask are those with one by hand."""
    global _something_stood_back
    if _inside == 0:
        return False
    _something_stood_back = True
    return True


def something_stood_back() -> bool:
    """Whether autograd has replaced a hand-written backward pass in the block that is open, or was last."""
    return _something_stood_back


@contextmanager
def by_autograd() -> Iterator[None]:
    """Inside, `dense` and the losses compute the same values, but autograd differentiates them.

    A forward pass made inside keeps autograd's backward pass, wherever `backward()` is called. For comparing the two;
    the switch is the process's, not the thread's, and costs nothing: another thread merely gets autograd's gradients.
    """
    global _inside, _something_stood_back
    with _counting:
        if _inside == 0:
            _something_stood_back = False
        _inside += 1
    try:
        yield
    finally:
        with _counting:
            _inside -= 1
