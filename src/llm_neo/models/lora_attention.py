"""What stands before an attention as one differentiable operation on a GPU: norm, q, k and v with LoRA, positions.

Shapes: L layers, T tokens, W hidden width, R rank, H heads of queries, G heads of keys and of values, D the width of a
head, O = (H + 2 G) D.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from llm_neo.models import lora_kernels as kernels
from llm_neo.models.lora_kernels import BLOCK_T, LARGEST_RANK
from llm_neo.models.projection import Adapters, Projection

_MOST_MEMBERS = 4
"""Heads that one program turns back, so that few pieces are left to add."""


class LoraAttention:
    """What stands before the attentions of one pass through the layers.

    Each layer leaves what the gradients of its LoRA matrices need; when the last gradient has come down to the first
    layer, those of all layers are computed by two kernels.
    """

    def __init__(
        self,
        projections: Sequence[Projection],
        heads: tuple[int, int, int],
        cos_TD: Tensor,
        sin_TD: Tensor,
        *,
        training: bool,
    ) -> None:
        """Begin a pass.

        Args:
            projections: q, k and v of each layer, such as `fits` takes.
            heads: H, G and D.
            cos_TD: of each token's position, in the states' dtype.
            sin_TD: likewise.
            training: the branches drop values.
        """
        self.heads, self.cos, self.sin = heads, cos_TD, sin_TD
        self.adapters: list[Adapters] = [p.adapters for p in projections if p.adapters is not None]
        self.weights: list[Tensor] = [p.weight for p in projections if p.weight is not None]
        self.rank, self.scale = len(self.matrices(0)[0]), self.adapters[0].scale
        self.dropout = self.adapters[0].dropout if training else 0.0
        layers, tokens, width = len(projections), len(cos_TD), self.matrices(0)[0].shape[1]
        self.seeds = torch.randint(2**31, (layers,), device=cos_TD.device)
        # Without gradients every layer may overwrite what the one before has left.
        kept = layers if torch.is_grad_enabled() else 1
        self.normed = cos_TD.new_empty((kept, tokens, width))
        self.low = cos_TD.new_empty((kept, tokens, 3 * self.rank), dtype=torch.float32)
        self.d_base: Tensor | None = None
        self.d_low = self.low
        every = [matrix for layer in range(layers) for matrix in self.matrices(layer)]
        self.ticket: Tensor = _Gradients.apply(self, *every)  # type: ignore[no-untyped-call]

    def matrices(self, layer: int) -> list[Tensor]:
        """The three downs and the three ups of a layer."""
        adapters = self.adapters[layer]
        return [matrix for matrix in (*adapters.down, *adapters.up) if matrix is not None]

    def __call__(
        self, layer: int, hidden_TW: Tensor, gain: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries (T, H, D), keys and values (T, G, D) of a layer, and its input for the residual.

        The input comes out again so that its gradient along the residual comes in here and is added on the way.
        """
        outputs: tuple[Tensor, Tensor, Tensor, Tensor]
        outputs = _Layer.apply(hidden_TW, self.ticket, self, layer, gain, epsilon)  # type: ignore[no-untyped-call]
        return outputs

    def begin_backward(self) -> None:
        """Make room for the gradients, once."""
        if self.d_base is None:
            layers, tokens, _ = self.normed.shape
            heads, keys, width = self.heads
            self.d_base = self.normed.new_empty((layers, tokens, (heads + 2 * keys) * width))
            self.d_low = torch.empty_like(self.low)


class _Gradients(torch.autograd.Function):
    """The gradients of all layers' LoRA matrices; its output is an empty tensor that ties the layers to it."""

    @staticmethod
    def forward(ctx: Any, shared: LoraAttention, *matrices: Tensor) -> Tensor:
        ctx.shared = shared
        return matrices[0].new_empty(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        shared = ctx.shared
        (layers, tokens, width), (q_heads, k_heads, head_width), rank = shared.normed.shape, shared.heads, shared.rank
        outputs = (q_heads + 2 * k_heads) * head_width
        d_up, d_down = shared.low.new_empty((layers, outputs, rank)), shared.low.new_empty((layers, 3, rank, width))
        kernels.d_up[(q_heads + 2 * k_heads, layers)](
            shared.d_base, shared.low, d_up, tokens, shared.scale, *shared.heads, rank, 64, num_warps=4
        )
        kernels.d_down[(triton.cdiv(width, 32), layers)](
            shared.normed, shared.d_low, shared.seeds, d_down, tokens, shared.dropout,
            width, rank, 128, 32, shared.dropout > 0, num_warps=4,
        )  # fmt: skip
        widths = [q_heads * head_width, k_heads * head_width, k_heads * head_width]
        # What the pass kept is not needed any more.
        ctx.shared = None
        return None, *(m for layer in range(layers) for m in (*d_down[layer].unbind(), *d_up[layer].split(widths)))


class _Layer(torch.autograd.Function):
    """One layer of a pass; see `LoraAttention`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, ticket: Tensor, shared: LoraAttention, layer: int, gain: Tensor, epsilon: float
    ) -> tuple[Tensor, ...]:
        (tokens, width), (q_heads, k_heads, head_width), rank = x.shape, shared.heads, shared.rank
        heads, rows, block, matrices = q_heads + 2 * k_heads, _rows(tokens), _block(width), shared.matrices(layer)
        pieces, kept = triton.cdiv(width, block), min(layer, len(shared.normed) - 1)
        normed, low, rescale = shared.normed[kept], shared.low[kept], x.new_empty((tokens,), dtype=torch.float32)
        low_pieces = low.new_empty((pieces, tokens, 3 * rank))
        kernels.norm_down[(rows, pieces)](
            x, gain, *matrices[:3], shared.seeds[layer], normed, low_pieces, rescale, tokens, epsilon, shared.dropout,
            width, rank, BLOCK_T, block, shared.dropout > 0, num_warps=4,
        )  # fmt: skip
        base = torch.nn.functional.linear(normed, shared.weights[layer])
        out = torch.empty_like(base)
        kernels.up_rotate[(rows, heads)](
            base, low_pieces, *matrices[3:], shared.cos, shared.sin, out, low, tokens, shared.scale,
            *shared.heads, rank, BLOCK_T, pieces, num_warps=2,
        )  # fmt: skip
        ctx.save_for_backward(x, gain, rescale)
        ctx.shared, ctx.layer = shared, layer
        q, k, v = out.view(tokens, heads, head_width).split([q_heads, k_heads, k_heads], dim=1)
        return q, k, v, x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x, gain, rescale), shared, layer = ctx.saved_tensors, ctx.shared, ctx.layer
        (tokens, width), (q_heads, k_heads, _), rank = x.shape, shared.heads, shared.rank
        shared.begin_backward()
        matrices, rows, d_base, d_low = shared.matrices(layer), _rows(tokens), shared.d_base[layer], shared.d_low[layer]
        dq, dk, dv, d_residual = (gradient.contiguous() for gradient in gradients)
        members = max(n for n in range(1, _MOST_MEMBERS + 1) if q_heads % n == 0 and k_heads % n == 0)
        groups = (q_heads // members, k_heads // members)
        d_pieces = shared.low.new_empty((groups[0] + 2 * groups[1], tokens, rank))
        kernels.rotate_back[(rows, len(d_pieces))](
            dq, dk, dv, *matrices[3:], shared.cos, shared.sin, d_base, d_pieces, tokens, shared.scale,
            *shared.heads, rank, BLOCK_T, members, num_warps=2,
        )  # fmt: skip
        dx = None
        if ctx.needs_input_grad[0]:
            d_normed, dx, block = d_base @ shared.weights[layer], torch.empty_like(x), _block(width)
            kernels.d_input[(rows, triton.cdiv(width, block))](
                x, shared.normed[layer], gain, rescale, d_normed, shared.low[layer], d_pieces, d_residual,
                *matrices[:3], shared.seeds[layer], dx, d_low, tokens, shared.dropout,
                width, rank, BLOCK_T, block, shared.dropout > 0, *groups, num_warps=8,
            )  # fmt: skip
        else:
            parts = d_pieces.split([groups[0], groups[1], groups[1]])
            torch.cat([part.sum(dim=0) for part in parts], dim=1, out=d_low)
        return dx, shared.low.new_empty(0), None, None, None, None


def _rows(tokens: int) -> int:
    return int(triton.cdiv(tokens, BLOCK_T))


def _block(width: int) -> int:
    """Columns of a program: enough programs for a GPU at the few hundred tokens of a step."""
    return 128 if width >= 1024 else 64


def fits(projections: Sequence[Projection], head_width: int) -> bool:
    """Whether this is what the kernels compute: q, k and v as one frozen product, with branches of one small rank."""
    if head_width < 32 or head_width != triton.next_power_of_2(head_width):
        return False
    kinds = set()
    for projection in projections:
        adapters = projection.adapters
        if projection.weight is None or projection.bias is not None or adapters is None or len(adapters.down) != 3:
            return False
        kinds |= {(0 if down is None else len(down), adapters.scale, adapters.dropout) for down in adapters.down}
    return len(kinds) == 1 and 0 < next(iter(kinds))[0] <= LARGEST_RANK
