"""Triton kernels for what lies between a decoder's matrix products: each reads and writes every value once.

Shapes: T tokens, W width, I inner width of an MLP, H heads, D their width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _norm(x_ptr, gain_ptr, out_ptr, rescale_ptr, width, epsilon, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    there = column < width
    x = tl.load(x_ptr + row * width + column, mask=there, other=0.0)
    precise = x.to(tl.float32)
    rescale = 1.0 / tl.sqrt(tl.sum(precise * precise, 0) / width + epsilon)
    gain = tl.load(gain_ptr + column, mask=there, other=0.0)
    tl.store(out_ptr + row * width + column, ((precise * rescale).to(x.dtype) * gain).to(x.dtype), mask=there)
    tl.store(rescale_ptr + row, rescale)


@triton.jit
def _norm_back(  # type: ignore[no-untyped-def]
    x_ptr, gain_ptr, rescale_ptr, d_out_ptr, d_kept_ptr, dx_ptr, width, KEPT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    there, place = column < width, row * width + column
    x = tl.load(x_ptr + place, mask=there, other=0.0)
    rescale = tl.load(rescale_ptr + row)
    unit = x.to(tl.float32) * rescale
    gain = tl.load(gain_ptr + column, mask=there, other=0.0).to(tl.float32)
    d_unit = tl.load(d_out_ptr + place, mask=there, other=0.0).to(tl.float32) * gain
    dx = rescale * (d_unit - unit * (tl.sum(d_unit * unit, 0) / width))
    if KEPT:
        dx += tl.load(d_kept_ptr + place, mask=there, other=0.0).to(tl.float32)
    tl.store(dx_ptr + place, dx.to(x.dtype), mask=there)


@triton.jit
def _gated(gate_ptr, up_ptr, out_ptr, width, gate_stride, up_stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = column < width
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=there, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, mask=there, other=0.0).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * width + column, out.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def _gated_back(  # type: ignore[no-untyped-def]
    gate_ptr, up_ptr, d_out_ptr, d_gate_ptr, d_up_ptr, width, gate_stride, up_stride, d_stride, BLOCK: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = column < width
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=there, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, mask=there, other=0.0).to(tl.float32)
    d_out = tl.load(d_out_ptr + row * width + column, mask=there, other=0.0).to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(-gate))
    d_gate = d_out * up * share * (1.0 + gate * (1.0 - share))
    tl.store(d_gate_ptr + row * d_stride + column, d_gate.to(d_gate_ptr.dtype.element_ty), mask=there)
    tl.store(d_up_ptr + row * d_stride + column, (d_out * gate * share).to(d_up_ptr.dtype.element_ty), mask=there)


@triton.jit
def _turn(  # type: ignore[no-untyped-def]
    x_ptr, cos_ptr, sin_ptr, out_ptr, heads, x_stride, out_stride, sign, D: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    row, head, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_H)[:, None], tl.arange(0, D // 2)[None, :]
    cos = tl.load(cos_ptr + row * D + d).to(tl.float32)
    sin = tl.load(sin_ptr + row * D + d).to(tl.float32) * sign
    there, place = head < heads, head * D + d
    first = tl.load(x_ptr + row * x_stride + place, mask=there, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + row * x_stride + place + D // 2, mask=there, other=0.0).to(tl.float32)
    target = out_ptr + row * out_stride + place
    tl.store(target, (first * cos - second * sin).to(out_ptr.dtype.element_ty), mask=there)
    tl.store(target + D // 2, (second * cos + first * sin).to(out_ptr.dtype.element_ty), mask=there)


def norm(x: Tensor, gain: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """`gain * x / sqrt(mean(x^2) + epsilon)` of rows (..., W), and what each row was multiplied by, (rows,) float32."""
    width = x.shape[-1]
    out, rescale = torch.empty_like(x), x.new_empty((x.numel() // width,), dtype=torch.float32)
    _norm[(len(rescale),)](
        x, gain, out, rescale, width, epsilon, triton.next_power_of_2(width), num_warps=_warps(width)
    )
    return out, rescale


def norm_back(x: Tensor, gain: Tensor, rescale: Tensor, d_out: Tensor, d_kept: Tensor | None) -> Tensor:
    """The gradient of x, with that of x itself added where there is one."""
    width, dx = x.shape[-1], torch.empty_like(x)
    kept = d_out if d_kept is None else d_kept
    _norm_back[(len(rescale),)](
        x, gain, rescale, d_out, kept, dx, width, d_kept is not None, triton.next_power_of_2(width),
        num_warps=_warps(width),
    )  # fmt: skip
    return dx


def gated(gate: Tensor, up: Tensor, out: Tensor | None = None) -> Tensor:
    """`silu(gate) * up`, (T, I), into `out` (rows side by side) if it is given; the rows of the two may be apart."""
    if out is None:
        out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    _gated[_grid(gate)](gate, up, out, gate.shape[1], gate.stride(0), up.stride(0), _COLUMNS, num_warps=4)
    return out


def gated_back(gate: Tensor, up: Tensor, d_out: Tensor, d_gate: Tensor, d_up: Tensor) -> None:
    """Write the gradients of both, whose rows are equally far apart."""
    _gated_back[_grid(gate)](
        gate, up, d_out, d_gate, d_up, gate.shape[1], gate.stride(0), up.stride(0), d_gate.stride(0), _COLUMNS,
        num_warps=4,
    )  # fmt: skip


def turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, back: bool) -> Tensor:
    """Heads (T, H, D) turned to their positions, or back from them; only rows may be apart. `cos`, `sin`: (T, 1, D)."""
    (tokens, heads, width), sign = x.shape, -1.0 if back else 1.0
    _turn[(tokens,)](
        x, cos, sin, out, heads, x.stride(0), out.stride(0), sign, width, triton.next_power_of_2(heads), num_warps=4
    )
    return out


_COLUMNS = 1024


def _grid(gate: Tensor) -> tuple[Any, ...]:
    return (len(gate), triton.cdiv(gate.shape[1], _COLUMNS))


def _warps(width: int) -> int:
    return 4 if width <= 1024 else 8
