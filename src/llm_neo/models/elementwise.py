"""What lies between a decoder's matrix products, with as few passes over memory as there can be.

Written as plain operations each of these is a dozen passes, forward and backward, and they would take as long as the
products. The gradients are written out by hand; frozen gains get none. On a GPU each is one kernel.

Shapes: T tokens, W width, I inner width of an MLP, H heads of queries, G heads of keys and values, D their width.
"""

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class FrozenNorm(torch.autograd.Function):
    """`gain * x / sqrt(mean(x^2) + epsilon)` over the last dimension (Zhang and Sennrich 2019), its gain a constant.

    The arithmetic is float32 and is rounded where that of transformers is. x itself comes out as well, so that its
    gradient along the residual comes in here and is added on the way.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        """The normalised x, in its dtype, and x."""
        ctx.set_materialize_grads(False)
        if has_kernels(x):
            from llm_neo.models import elementwise_kernels as kernels

            x = x.contiguous()
            out, rescale = kernels.norm(x, gain, epsilon)
        else:
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
            rescale = (length.square_() / x.shape[-1]).add_(epsilon).rsqrt_()
            out = torch.mul(x, rescale, out=torch.empty_like(x)).mul_(gain)
        ctx.save_for_backward(x, gain, rescale)
        return out, x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        """The gradient of x."""
        (x, gain, rescale), (d_out, d_kept) = ctx.saved_tensors, gradients
        if d_out is None:
            return d_kept, None, None
        if has_kernels(x):
            from llm_neo.models import elementwise_kernels as kernels

            d_kept = None if d_kept is None else d_kept.contiguous()
            return kernels.norm_back(x, gain, rescale, d_out.contiguous(), d_kept), None, None
        d_unit, precise = (d_out * gain).float(), x.float()
        along = torch.linalg.vecdot(d_unit, precise).unsqueeze(-1) * rescale.square() / x.shape[-1]
        total = torch.addcmul(d_unit, precise, along, value=-1.0)
        dx = torch.mul(total, rescale, out=torch.empty_like(x))
        return dx if d_kept is None else dx.add_(d_kept), None, None


class GatedUnit(torch.autograd.Function):
    """`silu(gate) * up` of the two side by side, (T, 2 I) -> (T, I) (Shazeer 2020, SwiGLU)."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        """(T, I)."""
        gate, up = gate_up.chunk(2, dim=-1)
        if has_kernels(gate_up):
            from llm_neo.models import elementwise_kernels as kernels

            ctx.save_for_backward(gate_up)
            return kernels.gated(gate, up)
        activated = F.silu(gate)
        ctx.save_for_backward(gate_up, activated)
        return activated * up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The gradient of both, (T, 2 I)."""
        gate_up, *kept = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        d_both = torch.empty_like(gate_up)
        _gated_back(gate, up, *kept, d_out=gradients[0], d_gate_up=d_both.chunk(2, dim=-1))
        return d_both


class GatedPair(torch.autograd.Function):
    """The same of two tensors, (T, I) each."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """(T, I)."""
        ctx.save_for_backward(gate, up)
        if has_kernels(gate):
            from llm_neo.models import elementwise_kernels as kernels

            return kernels.gated(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The gradients of both."""
        gate, up = ctx.saved_tensors
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(gate)
        _gated_back(gate, up, d_out=gradients[0], d_gate_up=(d_gate, d_up))
        return d_gate, d_up


def _gated_back(
    gate: Tensor, up: Tensor, activated: Tensor | None = None, *, d_out: Tensor, d_gate_up: tuple[Tensor, ...]
) -> None:
    """Write both gradients; `activated` = `silu(gate)` where the forward has kept it."""
    d_gate, d_up = d_gate_up
    if has_kernels(gate):
        from llm_neo.models import elementwise_kernels as kernels

        kernels.gated_back(gate, up, d_out.contiguous(), d_gate, d_up)
        return
    torch.mul(d_out, F.silu(gate) if activated is None else activated, out=d_up)
    d_gate.copy_(torch.ops.aten.silu_backward(d_out * up, gate))


class RotateJoint(torch.autograd.Function):
    """Queries (T, H, D) and keys (T, G, D) turned to their positions, and values, of a joint (T, (H + 2 G) D).

    Rotary position embedding in the half-split layout of transformers (Su et al. 2021, section 3).
    """

    @staticmethod
    def forward(
        ctx: Any, joint: Tensor, cos: Tensor, sin: Tensor, heads: tuple[int, int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`cos` and `sin` (T, 1, D), the joint's dtype; `heads` = H, G, D."""
        queries, keys, width = heads
        all_heads = joint.view(len(joint), -1, width)
        both = turned(all_heads[:, : queries + keys], cos, sin)
        ctx.save_for_backward(cos, sin)
        ctx.heads = heads
        q, k = both.split([queries, keys], dim=1)
        return q, k, all_heads[:, queries + keys :]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The gradient of the joint."""
        (cos, sin), (queries, keys, width) = ctx.saved_tensors, ctx.heads
        dq, dk, dv = gradients
        d_joint = dv.new_empty((len(dv), queries + 2 * keys, width))
        d_joint[:, queries + keys :].copy_(dv)
        for part, target in ((dq, d_joint[:, :queries]), (dk, d_joint[:, queries : queries + keys])):
            _turn(part, cos, sin, target, back=True)
        return d_joint.flatten(1), None, None, None


def gated_in_place(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up` where no gradient is wanted, written over `gate`, (T, I)."""
    if has_kernels(gate):
        from llm_neo.models import elementwise_kernels as kernels

        return kernels.gated(gate, up, out=gate)
    return F.silu(gate, inplace=True).mul_(up)


def turned(x_THD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads turned to their positions, (T, H, D); `cos` and `sin` (T, 1, D). It has no gradient."""
    return _turn(x_THD, cos, sin, torch.empty(x_THD.shape, dtype=x_THD.dtype, device=x_THD.device), back=False)


def _turn(x_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor, out: Tensor, *, back: bool) -> Tensor:
    """Each pair (i, i + D / 2) of a head turned by its position's angle, or back by it."""
    if has_kernels(x_THD):
        from llm_neo.models import elementwise_kernels as kernels

        return kernels.turn(x_THD, cos_T1D, sin_T1D, out, back=back)
    half = x_THD.shape[-1] // 2
    first, second = x_THD[..., :half], x_THD[..., half:]
    cos, sin = cos_T1D[..., :half], sin_T1D[..., :half]
    sign = 1.0 if back else -1.0
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=sign)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin, value=-sign)
    return out


def has_kernels(x: Tensor) -> bool:
    """Whether the Triton kernels can compute on this tensor."""
    return x.is_cuda and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
