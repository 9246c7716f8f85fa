"""The three matrix products of a layer, in the form that computes them fastest.

For a few rows and a wide weight on a CPU, MKL's plain products leave cores idle: a matrix times a vector runs on one core,
and each core has no more than a narrow strip of a few rows. Its batched product gives every core a matrix of its own, so
there the weight goes in as blocks of rows, w = [w_1; w_2; ...], or of columns: views of the same memory.

Measured on two cores of an AMD EPYC, float32, 4096 x 4096 at 1 / 8 / 32 / 128 / 512 rows: 1.6 / 1.5 / 1.4 / 1.2 / 1.1 times
faster than `F.linear`, and 1.5 / 1.6 / 1.5 / 1.1 / 1.05 times than `delta @ w`. On one core there is nothing to gain.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, get_num_threads
from torch.nn import functional as F

from manualgrad.autograd.torch_state import are_transforms_active


# Entries of a weight, in all and for each row, that make it pay.
SMALLEST, SMALLEST_PER_ROW, MOST_ROWS = 2**18, 2**12, 512
LEAST_BLOCKS = 4
PAGE = 1024  # float32 numbers in 4 KiB
STRIP = 16  # float32 numbers in a register of AVX-512

HALVES = (torch.float16, torch.bfloat16)


def times_weight_transposed(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """a w^T + b: a (..., n), weight (m, n), bias (m,) or None -> (..., m), contiguous."""
    if weight.numel() >= SMALLEST and _has_cores() and _pays_in_blocks(a, weight):
        r, (m, n) = a.size(0), weight.shape
        if blocks := _blocks(m, 512):
            every_block = a.expand(blocks, r, n)
            parts = weight.view(blocks, m // blocks, n).transpose(1, 2)
            if bias is None:
                z = torch.bmm(every_block, parts)
            else:
                z = torch.baddbmm(bias.view(blocks, 1, m // blocks), every_block, parts)
            return z.transpose(0, 1).reshape(r, m)
    if _views.are_made_once and bias is not None and _pays_in_strips(a, weight):
        return _in_strips(a, weight, bias)
    return F.linear(a, weight, bias)


def times_weight(delta: Tensor, weight: Tensor) -> Tensor:
    """delta w: delta (..., m), weight (m, n) -> (..., n)."""
    if weight.numel() >= SMALLEST and _has_cores() and _pays_in_blocks(delta, weight):
        r, (m, n) = delta.size(0), weight.shape
        if r < 4 and (blocks := _blocks(m, 512)):  # long rows of w, read as they lie
            parts = delta.view(r, blocks, m // blocks).transpose(0, 1)
            return torch.bmm(parts, weight.view(blocks, m // blocks, n)).sum(0)
        if r >= 4 and (blocks := _blocks(n, 256)):  # no sum over the blocks
            parts = torch.bmm(delta.expand(blocks, r, m), weight.view(m, blocks, n // blocks).transpose(0, 1))
            return parts.transpose(0, 1).reshape(r, n)
    return torch.matmul(delta, weight)


def add_product(target: Tensor, delta: Tensor, a: Tensor, alpha: float, beta: float) -> Tensor:
    """target := beta target + alpha delta^T a, in place: target (m, n), delta (r, m), a (r, n).

    One row is an outer product by name. For up to eight, MKL goes down all of the target in strips a few columns wide: where
    its rows are whole pages, their parts of a strip push one another out of the cache. Blocks of eight rows stay there: 3.8
    times faster for 2 rows and 4096 x 4096, 1.3 for 8, on one core too.
    """
    r, m = delta.shape
    if delta.dtype != target.dtype:  # see `accumulates_wider`
        return torch.addmm(target, delta.t(), a, out_dtype=target.dtype, beta=beta, alpha=alpha, out=target)
    if r == 1 and delta.dtype not in HALVES:  # where the outer product would round alpha * delta
        if beta == 1:
            return target.addcmul_(delta.t(), a, value=alpha)  # addr_ takes a fifth longer
        return target.addr_(delta[0], a[0], beta=beta, alpha=alpha)
    most = 8 if a.size(1) % PAGE == 0 else 3 if a.size(1) % (PAGE // 2) == 0 else 1
    if 2 <= r <= most and m % 8 == 0 and target.numel() >= SMALLEST and _is_plain(delta, target) and a.is_contiguous():
        parts = delta.view(r, m // 8, 8).permute(1, 2, 0)
        target.view(m // 8, 8, -1).baddbmm_(parts, a.expand(m // 8, -1, -1), beta=beta, alpha=alpha)
        return target
    return target.addmm_(delta.t(), a, beta=beta, alpha=alpha)


def write_product(target: Tensor, delta: Tensor, a: Tensor) -> Tensor:
    """target := delta^T a, for a target that stays in the cache: target (k, n), delta (r, k) with rows k numbers long, a (r, n).

    For few rows, where those of the target are half pages or pages, blocks of 8 or 64 of them through bmm. Two cores, float32,
    256 x 4096 at 2 / 8 / 32 / 128 rows: 4.4 / 2.4 / 1.8 / 1.1 times faster than `mm`; on one core 2.1 at 2 and nothing beyond 4.
    """
    r, k = delta.shape
    if r == 1 and delta.dtype not in HALVES:
        return torch.mul(delta.t(), a, out=target)
    size = 8 if r <= 8 else 64
    if (
        2 <= r <= (128 if _has_cores() else 4)
        and k % size == 0
        and a.size(1) % (PAGE // 2) == 0
        and _is_plain(a, target)
    ):
        parts = delta.view(r, k // size, size).permute(1, 2, 0)
        torch.bmm(parts, a.expand(k // size, -1, -1), out=target.view(k // size, size, -1))
        return target
    return torch.mm(delta.t(), a, out=target)


class _Views(threading.local):
    are_made_once = False


_views = _Views()


@contextmanager
def views_made_once() -> Iterator[None]:
    """In this thread, slices of the operands cost nothing in the long run: the kernels are recorded with them and replayed."""
    before, _views.are_made_once = _views.are_made_once, True
    try:
        yield
    finally:
        _views.are_made_once = before


def _in_strips(a: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """a w^T + b in strips of whole multiples of 16 columns: the last one overlaps the one before it, with equal results.

    MKL computes 16 columns at a time, and what is left over of 13, 14 or 15 as 8, 4, 2 and 1: for 784-30 that is up to half of
    the time. 1.2 / 1.4 / 1.4 times faster at 10 / 32 / 128 rows on one core, if the slices are at hand; making them takes as
    long as the product.
    """
    m = weight.size(0)
    z = a.new_empty((a.size(0), m))
    for strip in (slice(0, m // STRIP * STRIP), slice(m - STRIP, m)):
        torch.addmm(bias[strip], a, weight[strip].t(), out=z[:, strip])
    return z


def _pays_in_strips(a: Tensor, weight: Tensor) -> bool:
    m, n = weight.shape
    return (
        m % STRIP >= 13
        and STRIP < m < 4 * STRIP
        and n >= 512
        and a.dim() == 2
        and a.size(0) >= 4
        and not torch.is_grad_enabled()
        and _is_plain(a, weight)
    )


def accumulates_wider(target: Tensor, dtype: torch.dtype) -> bool:
    """Whether `add_product` takes factors of that dtype for this target as they are, and sums their products in float32."""
    return target.is_cuda and target.dtype == torch.float32 and dtype in HALVES and _has_wide_sums(target.device, dtype)


@functools.cache
def _has_wide_sums(device: torch.device, dtype: torch.dtype) -> bool:
    """By trying: torch 2.8 brought `out_dtype` on CUDA, and later releases an addend of that dtype."""
    target, factor = torch.zeros(16, 16, device=device), torch.ones(16, 16, device=device, dtype=dtype)
    try:
        torch.addmm(target, factor, factor, out_dtype=torch.float32, out=target)
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return True


def _has_cores() -> bool:
    return not torch.compiler.is_compiling() and get_num_threads() > 1  # a number that torch.compile cannot ask for


def _pays_in_blocks(rows: Tensor, weight: Tensor) -> bool:
    """A few rows of float32 on several cores, in plain eager mode with nothing to differentiate."""
    return (
        rows.dim() == 2
        and 1 <= rows.size(0) <= min(MOST_ROWS, weight.numel() // SMALLEST_PER_ROW)
        and (rows.size(0) > 1 or weight.numel() >= 2 * SMALLEST)
        and not torch.is_grad_enabled()
        and _is_plain(rows, weight)
    )


def _is_plain(x: Tensor, y: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and x.dtype == y.dtype == torch.float32
        and x.device.type == y.device.type == "cpu"
        and x.is_contiguous()
        and y.is_contiguous()
        and type(x) is Tensor
        and not are_transforms_active()
    )


def _blocks(size: int, of: int) -> int:
    """Into how many blocks: of about `of`, at least one for each core. 0 if they would not be equal."""
    blocks = LEAST_BLOCKS
    while blocks * of < size or blocks < get_num_threads():
        blocks *= 2
    return blocks if size % blocks == 0 else 0
