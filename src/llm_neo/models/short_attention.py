"""Triton kernels for causal attention of short segments: each is read once and its scores never leave the chip.

A flash kernel walks over blocks of 128 queries and keys and needs four more launches for its gradient; a sentence has
13 tokens. Here one program holds all scores of a segment and of the heads that share keys, in a tile of about its size,
so that forward and backward are a launch each.

Shapes: S segments, Q queries, K keys, H heads of queries, G heads of keys and values, D the width of a head.
"""

from typing import Any

import torch
import triton
import triton.language as tl

LONGEST = 128
"""Tokens of the longest segment that one program can hold."""

_MOST_ROWS = 256
"""Queries of all heads in one tile."""


@triton.jit
def _scores(q, k, scale, place_q, place_k, count_q, count_k):  # type: ignore[no-untyped-def]
    """Softmax of the masked scores, float32; a query past the end of its segment looks at what it likes."""
    limit = count_k - count_q + place_q
    seen = (place_k[None, :] <= limit[:, None]) & (place_k[None, :] < count_k)
    scores = tl.where(seen, tl.dot(q, tl.trans(k)) * scale, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    return weights / tl.sum(weights, 1)[:, None]


@triton.jit
def _forward_packed(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, out_ptr, q_stride, k_stride, v_stride, out_stride, count_q, count_k, scale,
    SHARED: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The heads of a segment that share keys and values, below each other in one tile of ROWS queries.

    The pointers are at the segment's first query and key.
    """
    row, place_k, d = tl.arange(0, ROWS), tl.arange(0, BLOCK_K), tl.arange(0, D)[None, :]
    place_q, shared = row % BLOCK_Q, row // BLOCK_Q
    there_q, there_k = ((place_q < count_q) & (shared < SHARED))[:, None], (place_k < count_k)[:, None]
    rows_q, rows_k, column = place_q[:, None], place_k[:, None], shared[:, None] * D + d
    q = tl.load(q_ptr + rows_q * q_stride + column, mask=there_q, other=0.0)
    k = tl.load(k_ptr + rows_k * k_stride + d, mask=there_k, other=0.0)
    v = tl.load(v_ptr + rows_k * v_stride + d, mask=there_k, other=0.0)
    weights = _scores(q, k, scale, place_q, place_k, count_q, count_k)
    out = tl.dot(weights.to(v.dtype), v)
    tl.store(out_ptr + rows_q * out_stride + column, out.to(q.dtype), mask=there_q)


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, out_ptr, q_starts, k_starts, q_stride, k_stride, v_stride, out_stride, scale,
    SHARED: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
    FEW: tl.constexpr, SMALL: tl.constexpr, MIDDLE: tl.constexpr,
):  # fmt: skip
    segment, group = tl.program_id(0), tl.program_id(1)
    q_first, k_first = tl.load(q_starts + segment), tl.load(k_starts + segment)
    count_q, count_k = tl.load(q_starts + segment + 1) - q_first, tl.load(k_starts + segment + 1) - k_first
    q, out = q_ptr + q_first * q_stride + group * SHARED * D, out_ptr + q_first * out_stride + group * SHARED * D
    k, v = k_ptr + k_first * k_stride + group * D, v_ptr + k_first * v_stride + group * D
    if (count_q <= FEW) & (count_k <= SMALL):
        _forward_packed(
            q, k, v, out, q_stride, k_stride, v_stride, out_stride, count_q, count_k, scale,
            SHARED, HEADS * FEW, D, FEW, SMALL,
        )  # fmt: skip
    elif (count_q <= SMALL) & (count_k <= SMALL):
        _forward_packed(
            q, k, v, out, q_stride, k_stride, v_stride, out_stride, count_q, count_k, scale,
            SHARED, HEADS * SMALL, D, SMALL, SMALL,
        )  # fmt: skip
    elif (count_q <= MIDDLE) & (count_k <= MIDDLE):
        _forward_packed(
            q, k, v, out, q_stride, k_stride, v_stride, out_stride, count_q, count_k, scale,
            SHARED, HEADS * MIDDLE, D, MIDDLE, MIDDLE,
        )  # fmt: skip
    else:
        for member in range(SHARED):
            _forward_packed(
                q + member * D, k, v, out + member * D, q_stride, k_stride, v_stride, out_stride,
                count_q, count_k, scale, 1, BLOCK, D, BLOCK, BLOCK,
            )  # fmt: skip


@triton.jit
def _backward_packed(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, do_ptr, dq_ptr, dk_ptr, dv_ptr,
    q_stride, k_stride, v_stride, do_stride, dq_stride, dk_stride, dv_stride, count_q, count_k, scale,
    SHARED: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`_backward_tile` with all heads that share keys and values below each other in one tile, (ROWS, D)."""
    row, place_k, d = tl.arange(0, ROWS), tl.arange(0, BLOCK), tl.arange(0, D)[None, :]
    place_q, shared = row % BLOCK, row // BLOCK
    there_q, there_k = ((place_q < count_q) & (shared < SHARED))[:, None], (place_k < count_k)[:, None]
    rows_q, rows_k, column = place_q[:, None], place_k[:, None], shared[:, None] * D + d
    q = tl.load(q_ptr + rows_q * q_stride + column, mask=there_q, other=0.0)
    do = tl.load(do_ptr + rows_q * do_stride + column, mask=there_q, other=0.0)
    k = tl.load(k_ptr + rows_k * k_stride + d, mask=there_k, other=0.0)
    v = tl.load(v_ptr + rows_k * v_stride + d, mask=there_k, other=0.0)
    weights = _scores(q, k, scale, place_q, place_k, count_q, count_k)
    dv = tl.dot(tl.trans(weights.to(do.dtype)), do)
    d_weights = tl.dot(do, tl.trans(v))
    d_scores = (weights * (d_weights - tl.sum(weights * d_weights, 1)[:, None]) * scale).to(q.dtype)
    tl.store(dq_ptr + rows_q * dq_stride + column, tl.dot(d_scores, k).to(q.dtype), mask=there_q)
    tl.store(dk_ptr + rows_k * dk_stride + d, tl.dot(tl.trans(d_scores), q).to(k.dtype), mask=there_k)
    tl.store(dv_ptr + rows_k * dv_stride + d, dv.to(v.dtype), mask=there_k)


@triton.jit
def _backward_tile(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, do_ptr, dq_ptr, dk_ptr, dv_ptr,
    q_stride, k_stride, v_stride, do_stride, dq_stride, dk_stride, dv_stride, count_q, count_k, scale,
    SHARED: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The heads of a segment that share keys and values; the pointers are at its first query and key."""
    place_q, place_k, d = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_K), tl.arange(0, D)
    there_q, there_k = (place_q < count_q)[:, None], (place_k < count_k)[:, None]
    rows_q, rows_k = place_q[:, None], place_k[:, None]
    k = tl.load(k_ptr + rows_k * k_stride + d[None, :], mask=there_k, other=0.0)
    v = tl.load(v_ptr + rows_k * v_stride + d[None, :], mask=there_k, other=0.0)
    dk, dv = tl.zeros((BLOCK_K, D), tl.float32), tl.zeros((BLOCK_K, D), tl.float32)
    for shared in range(SHARED):
        column = shared * D + d[None, :]
        q = tl.load(q_ptr + rows_q * q_stride + column, mask=there_q, other=0.0)
        # Rows past the end have no gradient, so that what they look at does not count.
        do = tl.load(do_ptr + rows_q * do_stride + column, mask=there_q, other=0.0)
        weights = _scores(q, k, scale, place_q, place_k, count_q, count_k)
        dv += tl.dot(tl.trans(weights.to(do.dtype)), do)
        d_weights = tl.dot(do, tl.trans(v))
        d_scores = weights * (d_weights - tl.sum(weights * d_weights, 1)[:, None]) * scale
        d_scores = d_scores.to(q.dtype)
        tl.store(dq_ptr + rows_q * dq_stride + column, tl.dot(d_scores, k).to(q.dtype), mask=there_q)
        dk += tl.dot(tl.trans(d_scores), q)
    tl.store(dk_ptr + rows_k * dk_stride + d[None, :], dk.to(k.dtype), mask=there_k)
    tl.store(dv_ptr + rows_k * dv_stride + d[None, :], dv.to(v.dtype), mask=there_k)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, do_ptr, dq_ptr, dk_ptr, dv_ptr, q_starts, k_starts,
    q_stride, k_stride, v_stride, do_stride, dq_stride, dk_stride, dv_stride, scale,
    SHARED: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
    FEW: tl.constexpr, SMALL: tl.constexpr, MIDDLE: tl.constexpr,
):  # fmt: skip
    segment, group = tl.program_id(0), tl.program_id(1)
    q_first, k_first = tl.load(q_starts + segment), tl.load(k_starts + segment)
    count_q, count_k = tl.load(q_starts + segment + 1) - q_first, tl.load(k_starts + segment + 1) - k_first
    q, do = q_ptr + q_first * q_stride + group * SHARED * D, do_ptr + q_first * do_stride + group * SHARED * D
    dq = dq_ptr + q_first * dq_stride + group * SHARED * D
    k, v = k_ptr + k_first * k_stride + group * D, v_ptr + k_first * v_stride + group * D
    dk, dv = dk_ptr + k_first * dk_stride + group * D, dv_ptr + k_first * dv_stride + group * D
    longest = tl.maximum(count_q, count_k)
    if longest <= FEW:
        _backward_packed(
            q, k, v, do, dq, dk, dv, q_stride, k_stride, v_stride, do_stride, dq_stride, dk_stride, dv_stride,
            count_q, count_k, scale, SHARED, HEADS * FEW, D, FEW,
        )  # fmt: skip
    elif longest <= SMALL:
        _backward_packed(
            q, k, v, do, dq, dk, dv, q_stride, k_stride, v_stride, do_stride, dq_stride, dk_stride, dv_stride,
            count_q, count_k, scale, SHARED, HEADS * SMALL, D, SMALL,
        )  # fmt: skip
    elif longest <= MIDDLE:
        _backward_packed(
            q, k, v, do, dq, dk, dv, q_stride, k_stride, v_stride, do_stride, dq_stride, dk_stride, dv_stride,
            count_q, count_k, scale, SHARED, HEADS * MIDDLE, D, MIDDLE,
        )  # fmt: skip
    else:
        _backward_tile(
            q, k, v, do, dq, dk, dv, q_stride, k_stride, v_stride, do_stride, dq_stride, dk_stride, dv_stride,
            count_q, count_k, scale, SHARED, D, BLOCK, BLOCK,
        )  # fmt: skip


class ShortAttention(torch.autograd.Function):
    """Attention of queries (Q, H, D) over keys and values (K, G, D), no segment longer than `LONGEST`."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        query_starts: torch.Tensor,
        key_starts: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Attention outputs, (Q, H, D)."""
        q, k, v = (_rows_of_heads(tensor) for tensor in (q, k, v))
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        shared = q.shape[1] // k.shape[1]
        _forward[(len(query_starts) - 1, k.shape[1])](
            q, k, v, out, query_starts, key_starts, q.stride(0), k.stride(0), v.stride(0), out.stride(0), scale,
            shared, q.shape[2], LONGEST, *_sizes(shared), num_warps=4,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, query_starts, key_starts)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Gradients of queries, keys and values."""
        q, k, v, query_starts, key_starts = ctx.saved_tensors
        do = _rows_of_heads(gradients[0])
        dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
        grid = (len(query_starts) - 1, k.shape[1])
        tensors = (q, k, v, do, dq, dk, dv)
        _backward[grid](
            *tensors, query_starts, key_starts, *(t.stride(0) for t in tensors), ctx.scale,
            q.shape[1] // k.shape[1], q.shape[2], LONGEST, *_sizes(q.shape[1] // k.shape[1]), num_warps=8,
        )  # fmt: skip
        return dq, dk, dv, None, None, None


def _rows_of_heads(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as the kernels read it: any stride between tokens, heads and their values side by side."""
    return tensor if tensor.stride()[1:] == (tensor.shape[2], 1) else tensor.contiguous()


def _sizes(shared: int) -> tuple[int, int, int, int]:
    """Rows of a tile for the heads that share keys, and the sizes up to which a segment gets a tile of its own."""
    heads = triton.next_power_of_2(shared)
    few, small, middle = (max(16, min(size, _MOST_ROWS // heads)) for size in (16, 32, 64))
    return heads, few, small, middle
