"""Triton kernels for what stands before an attention: norm, q, k and v with their LoRA branches, rotary positions.

The frozen product is the matrix library's; all else is one kernel before it and one after it, where a chain of small
operations would cost a launch each. Rank 4 leaves a matrix unit idle, so the branches' sums are done where their
inputs are in registers anyway. Dropout's mask is never stored: forward and backward draw it from the same seed.

Shapes: T tokens, W hidden width, N = 3 branches (q, k, v), R rank, H heads of all three, D the width of a head,
O = H * D outputs.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from llm_neo.models.projection import Projection

_LARGEST_RANK = 16


@triton.jit
def _kept(x, seed, branch, row, column, width, dropout):  # type: ignore[no-untyped-def]
    """The values that a branch sees, scaled; the mask depends on seed, branch, token and column alone."""
    draw = tl.rand(seed, (branch * 65536 + row) * width + column)
    return tl.where(draw >= dropout, x / (1.0 - dropout), 0.0)


@triton.jit
def _norm_down(  # type: ignore[no-untyped-def]
    x_ptr, gain_ptr, a0, a1, a2, seed_ptr, xn_ptr, low_ptr, scale_ptr, width, epsilon, dropout,
    R: tl.constexpr, BLOCK: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    there = column < width
    x = tl.load(x_ptr + row * width + column, mask=there, other=0.0)
    precise = x.to(tl.float32)
    rescale = 1.0 / tl.sqrt(tl.sum(precise * precise, 0) / width + epsilon)
    gain = tl.load(gain_ptr + column, mask=there, other=0.0)
    normed = ((precise * rescale).to(x.dtype) * gain).to(x.dtype)
    tl.store(xn_ptr + row * width + column, normed, mask=there)
    tl.store(scale_ptr + row, rescale)
    seed = tl.load(seed_ptr)
    for branch in tl.static_range(3):
        a_ptr = a0 if branch == 0 else (a1 if branch == 1 else a2)
        seen = normed.to(tl.float32)
        if DROPS:
            seen = _kept(seen, seed, branch, row, column, width, dropout)
        for rank in tl.static_range(R):
            a = tl.load(a_ptr + rank * width + column, mask=there, other=0.0)
            tl.store(low_ptr + row * 3 * R + branch * R + rank, tl.sum(seen * a, 0))


@triton.jit
def _branch_of(head, Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.where(head < Q_HEADS, 0, tl.where(head < Q_HEADS + K_HEADS, 1, 2))


@triton.jit
def _up_rotate(  # type: ignore[no-untyped-def]
    base_ptr, low_ptr, up_ptr, cos_ptr, sin_ptr, out_ptr, scale,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    heads = Q_HEADS + 2 * K_HEADS
    branch = _branch_of(head, Q_HEADS, K_HEADS)
    d = tl.arange(0, D // 2)
    place = row * heads * D + head * D + d
    first, second = tl.load(base_ptr + place).to(tl.float32), tl.load(base_ptr + place + D // 2).to(tl.float32)
    for rank in tl.static_range(R):
        low = tl.load(low_ptr + row * 3 * R + branch * R + rank) * scale
        first += low * tl.load(up_ptr + (head * D + d) * R + rank)
        second += low * tl.load(up_ptr + (head * D + D // 2 + d) * R + rank)
    if head < Q_HEADS + K_HEADS:
        cos, sin = tl.load(cos_ptr + row * D + d).to(tl.float32), tl.load(sin_ptr + row * D + d).to(tl.float32)
        first, second = first * cos - second * sin, second * cos + first * sin
    tl.store(out_ptr + place, first.to(out_ptr.dtype.element_ty))
    tl.store(out_ptr + place + D // 2, second.to(out_ptr.dtype.element_ty))


@triton.jit
def _rotate_back(  # type: ignore[no-untyped-def]
    dq_ptr, dk_ptr, dv_ptr, up_ptr, cos_ptr, sin_ptr, d_base_ptr, d_low_ptr, scale,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, D: tl.constexpr, R: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    row, branch = tl.program_id(0), tl.program_id(1)
    head, d = tl.arange(0, BLOCK_H)[:, None], tl.arange(0, D // 2)[None, :]
    cos, sin = tl.load(cos_ptr + row * D + d).to(tl.float32), tl.load(sin_ptr + row * D + d).to(tl.float32)
    if branch == 2:
        # Values are not turned.
        cos, sin = tl.full((1, D // 2), 1.0, tl.float32), tl.zeros((1, D // 2), tl.float32)
    source = dq_ptr if branch == 0 else (dk_ptr if branch == 1 else dv_ptr)
    count = tl.where(branch == 0, Q_HEADS, K_HEADS)
    before = tl.where(branch == 0, 0, tl.where(branch == 1, Q_HEADS, Q_HEADS + K_HEADS))
    there = (head < count) & (d < D)
    place = (row * count + head) * D + d
    first = tl.load(source + place, mask=there, other=0.0).to(tl.float32)
    second = tl.load(source + place + D // 2, mask=there, other=0.0).to(tl.float32)
    first, second = first * cos + second * sin, second * cos - first * sin
    target = (row * (Q_HEADS + 2 * K_HEADS) + before + head) * D + d
    tl.store(d_base_ptr + target, first.to(d_base_ptr.dtype.element_ty), mask=there)
    tl.store(d_base_ptr + target + D // 2, second.to(d_base_ptr.dtype.element_ty), mask=there)
    up_place = ((before + head) * D + d) * R
    for rank in tl.static_range(R):
        up_first = tl.load(up_ptr + up_place + rank, mask=there, other=0.0)
        up_second = tl.load(up_ptr + up_place + (D // 2) * R + rank, mask=there, other=0.0)
        total = tl.sum(tl.sum(first * up_first + second * up_second, 1), 0)
        tl.store(d_low_ptr + row * 3 * R + branch * R + rank, total * scale)


@triton.jit
def _d_up(  # type: ignore[no-untyped-def]
    d_base_ptr, low_ptr, d_up_ptr, tokens, scale,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, D: tl.constexpr, R: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    branch = _branch_of(head, Q_HEADS, K_HEADS)
    outputs = (Q_HEADS + 2 * K_HEADS) * D
    d, rank = tl.arange(0, D), tl.arange(0, 16)
    total = tl.zeros((D, 16), tl.float32)
    for start in range(0, tokens, BLOCK_T):
        row = start + tl.arange(0, BLOCK_T)
        g = tl.load(d_base_ptr + row[None, :] * outputs + head * D + d[:, None], mask=row[None, :] < tokens, other=0.0)
        there = (row[:, None] < tokens) & (rank[None, :] < R)
        low = tl.load(low_ptr + row[:, None] * 3 * R + branch * R + rank[None, :], mask=there, other=0.0)
        total += tl.dot(g, low.to(g.dtype))
    target = d_up_ptr + (head * D + d)[:, None] * R + rank[None, :]
    tl.store(target, total * scale, mask=(rank < R)[None, :])


@triton.jit
def _d_down(  # type: ignore[no-untyped-def]
    xn_ptr, d_low_ptr, seed_ptr, d_down_ptr, tokens, width, dropout,
    R: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    branch, column = tl.program_id(0), tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    rank, seed = tl.arange(0, 16), tl.load(seed_ptr)
    total = tl.zeros((16, BLOCK_W), tl.float32)
    for start in range(0, tokens, BLOCK_T):
        row = start + tl.arange(0, BLOCK_T)
        there = (row[:, None] < tokens) & (column[None, :] < width)
        x = tl.load(xn_ptr + row[:, None] * width + column[None, :], mask=there, other=0.0)
        seen = x
        if DROPS:
            seen = _kept(x.to(tl.float32), seed, branch, row[:, None], column[None, :], width, dropout).to(x.dtype)
        mask = (row[None, :] < tokens) & (rank[:, None] < R)
        g = tl.load(d_low_ptr + row[None, :] * 3 * R + branch * R + rank[:, None], mask=mask, other=0.0)
        total += tl.dot(g.to(x.dtype), seen)
    target = d_down_ptr + (branch * R + rank)[:, None] * width + column[None, :]
    tl.store(target, total, mask=(rank < R)[:, None] & (column[None, :] < width))


@triton.jit
def _d_input(  # type: ignore[no-untyped-def]
    x_ptr, gain_ptr, scale_ptr, d_xn_ptr, d_low_ptr, d_residual_ptr, a0, a1, a2, seed_ptr, dx_ptr, width, dropout,
    R: tl.constexpr, BLOCK: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    there = column < width
    d_normed = tl.load(d_xn_ptr + row * width + column, mask=there, other=0.0).to(tl.float32)
    seed = tl.load(seed_ptr)
    for branch in tl.static_range(3):
        a_ptr = a0 if branch == 0 else (a1 if branch == 1 else a2)
        d_seen = tl.zeros((BLOCK,), tl.float32)
        for rank in tl.static_range(R):
            d_low = tl.load(d_low_ptr + row * 3 * R + branch * R + rank)
            d_seen += d_low * tl.load(a_ptr + rank * width + column, mask=there, other=0.0)
        if DROPS:
            d_seen = _kept(d_seen, seed, branch, row, column, width, dropout)
        d_normed += d_seen
    x = tl.load(x_ptr + row * width + column, mask=there, other=0.0)
    rescale = tl.load(scale_ptr + row)
    unit = x.to(tl.float32) * rescale
    d_unit = d_normed * tl.load(gain_ptr + column, mask=there, other=0.0).to(tl.float32)
    dx = rescale * (d_unit - unit * (tl.sum(d_unit * unit, 0) / width))
    dx += tl.load(d_residual_ptr + row * width + column, mask=there, other=0.0).to(tl.float32)
    tl.store(dx_ptr + row * width + column, dx.to(x.dtype), mask=there)


class NormProjectRotate(torch.autograd.Function):
    """Queries (T, Hq, D), keys and values (T, Hk, D) of hidden states (T, W), and those states for the residual.

    The states come out again so that their gradient along the residual comes in here and is added on the way.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        gain: torch.Tensor,
        weight: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        seed: torch.Tensor,
        shape: tuple[int, int, int],
        epsilon: float,
        scale: float,
        dropout: float,
        *adapters: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """`shape` = query heads, key heads, D; `weight` (O, W); `adapters` = the three downs, then the three ups."""
        (tokens, width), downs = x.shape, adapters[:3]
        up = torch.cat(adapters[3:])
        rank, (q_heads, k_heads, head_width) = up.shape[1], shape
        xn, low = torch.empty_like(x), x.new_empty((tokens, 3 * rank), dtype=torch.float32)
        rescale = x.new_empty((tokens,), dtype=torch.float32)
        block, warps = triton.next_power_of_2(width), 4 if width <= 2048 else 8
        _norm_down[(tokens,)](
            x, gain, *downs, seed, xn, low, rescale, width, epsilon, dropout,
            rank, block, dropout > 0, num_warps=warps,
        )  # fmt: skip
        base = torch.nn.functional.linear(xn, weight)
        out = torch.empty_like(base)
        heads = q_heads + 2 * k_heads
        _up_rotate[(tokens, heads)](
            base, low, up, cos, sin, out, scale, q_heads, k_heads, head_width, rank, num_warps=1
        )
        ctx.save_for_backward(x, gain, weight, cos, sin, seed, xn, low, rescale, up, *downs)
        ctx.shape, ctx.numbers = shape, (scale, dropout)
        q, k, v = out.view(tokens, heads, head_width).split([q_heads, k_heads, k_heads], dim=1)
        return q, k, v, x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Gradients of the states and of the six adapter matrices."""
        x, gain, weight, cos, sin, seed, xn, low, rescale, up, *downs = ctx.saved_tensors
        (tokens, width), (q_heads, k_heads, head_width), (scale, dropout) = x.shape, ctx.shape, ctx.numbers
        dq, dk, dv, d_residual = (gradient.contiguous() for gradient in gradients)
        rank, heads = up.shape[1], q_heads + 2 * k_heads
        d_base, d_low = x.new_empty((tokens, heads * head_width)), torch.empty_like(low)
        d_up, d_down = torch.empty_like(up), up.new_empty((3, rank, width))
        constants = (q_heads, k_heads, head_width, rank)
        _rotate_back[(tokens, 3)](
            dq, dk, dv, up, cos, sin, d_base, d_low, scale, *constants, triton.next_power_of_2(q_heads), num_warps=4
        )
        _d_up[(heads,)](d_base, low, d_up, tokens, scale, *constants, 64, num_warps=4)
        _d_down[(3, triton.cdiv(width, 64))](
            xn, d_low, seed, d_down, tokens, width, dropout, rank, 64, 64, dropout > 0, num_warps=4
        )
        dx = None
        if ctx.needs_input_grad[0]:
            d_xn, dx = d_base @ weight, torch.empty_like(x)
            _d_input[(tokens,)](
                x, gain, rescale, d_xn, d_low, d_residual, *downs, seed, dx, width, dropout,
                rank, triton.next_power_of_2(width), dropout > 0, num_warps=4 if width <= 2048 else 8,
            )  # fmt: skip
        ups = d_up.split([q_heads * head_width, k_heads * head_width, k_heads * head_width])
        return dx, *[None] * 9, *d_down.unbind(), *ups


def fits(projection: Projection, head_width: int) -> bool:
    """Whether this is what the kernels compute: q, k and v as one frozen product, each with a branch of small rank."""
    adapters = projection.adapters
    if projection.weight is None or projection.bias is not None or adapters is None:
        return False
    small = all(down is not None and len(down) <= _LARGEST_RANK for down in adapters.down)
    return small and len(adapters.down) == 3 and head_width == triton.next_power_of_2(head_width)
