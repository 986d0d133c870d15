"""Dropout of what a LoRA branch sees, with few draws and passes over memory on a CPU.

Shapes: N branches with one input, T tokens, I input width, O output widths of all layers together, R rank.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def dropped(shape: tuple[int, ...], keep: float, x: Tensor) -> Tensor:
    """Inverted dropout of x, broadcast to `shape`: each value with probability `keep`, divided by it, else 0.

    On a CPU a draw of 64 bits serves four values, since drawing is what costs there: the probability is then a
    multiple of 2^-16, and what is kept is divided by exactly that.
    """
    if x.device.type != "cpu":
        return F.dropout(x.expand(shape), 1.0 - keep, training=True)
    size = math.prod(shape)
    draws = torch.empty((size + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = min(2**16 - 1, max(1, round(keep * 2**16)))
    is_kept = draws.view(torch.int16)[:size].view(shape) < kept - 2**15
    return torch.where(is_kept, x * (2**16 / kept), 0.0)


class DroppedBranches(torch.autograd.Function):
    """`out + scale * up(down(dropout(x)))` of N branches on a CPU in 16 bits, each with a mask of its own.

    A mask is 16 bits a value, all of them set or none, so that dropping is one bitwise operation on what lies in memory
    anyway; what is kept is scaled up by the product that follows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, out: Tensor, down_NRI: Tensor, up_OR: Tensor, keep: float, scale: float) -> Tensor:
        """The sum (T, O) for x (T, I) and out (T, O); `up_OR` (O, N R); all of one dtype."""
        x = x.contiguous()
        mask_NTI, share = kept_bits((len(down_NRI), *x.shape), keep)
        low_TR = torch.bmm(_masked(x, mask_NTI), down_NRI.transpose(1, 2)).transpose(0, 1).reshape(len(x), -1)
        ctx.save_for_backward(x, mask_NTI, down_NRI, up_OR, low_TR)
        ctx.scale = scale / share
        return torch.addmm(out, low_TR, up_OR.t(), alpha=ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Gradients of x, of what the branches were added to and of both halves."""
        (x, mask_NTI, down_NRI, up_OR, low_TR), (d_out,) = ctx.saved_tensors, gradients
        d_low_TR = (d_out @ up_OR).mul_(ctx.scale)
        d_up_OR = (d_out.t() @ low_TR).mul_(ctx.scale)
        d_low_NTR = d_low_TR.view(len(x), len(down_NRI), -1).transpose(0, 1).contiguous()
        d_down_NRI = torch.bmm(d_low_NTR.transpose(1, 2), _masked(x, mask_NTI))
        dx = None
        if ctx.needs_input_grad[0]:
            dx = _masked(torch.bmm(d_low_NTR, down_NRI), mask_NTI).sum(dim=0)
        return dx, d_out, d_down_NRI, d_up_OR, None, None


def kept_bits(shape: tuple[int, ...], keep: float) -> tuple[Tensor, float]:
    """int16, all bits set with probability `keep` and else none; and that probability, a multiple of 2^-15.

    A draw of 64 bits serves four values, since drawing is what costs; 15 bits of each, so that a difference of two
    fits 16.
    """
    size = math.prod(shape)
    bits = torch.empty((size + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:size].view(shape)
    dropped_of_all = min(2**15 - 1, max(1, round((1.0 - keep) * 2**15)))
    bound = dropped_of_all - 2**14
    # What is below the bound keeps its sign in the difference, the rest is 0.
    bits.bitwise_right_shift_(1).clamp_(max=bound).sub_(bound).bitwise_right_shift_(15).bitwise_not_()
    return bits, 1.0 - dropped_of_all / 2**15


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    return torch.bitwise_and(x.view(torch.int16), mask).view(x.dtype)
