"""The decoders of the Llama family over packed texts, with nothing computed that the answer does not need.

It reads the very tensors of a model of transformers (with or without peft's LoRA), so training one trains the other;
q, k and v are one product, gate and up another, and the last layer computes queries, their output and its MLP only
for the tokens that are pooled.

Shapes: T tokens, S segments, W hidden width, H heads of queries, G heads of keys and values, D their width, C classes.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from shutil import which
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llm_neo import tasks
from llm_neo.assets import cache_folder
from llm_neo.models.attention import PackedAttention, Segments, has_packed_kernel
from llm_neo.models.decoder import (
    Heads,
    after_attention,
    before_attention,
    before_last_attention,
    read_layer,
    read_norm,
    refuse_other_arithmetic,
    rms_norm,
)

if TYPE_CHECKING:
    from llm_neo.models.lora_attention import LoraAttention


def can_compile() -> bool:
    """Whether torch.compile can write GPU kernels here: it needs Triton and a C compiler.

    What it writes is kept in the user's cache, so that the next run starts at once.
    """
    compilers = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    if find_spec("triton") is None or not any(which(name) for name in compilers if name):
        return False
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    return True


def unsupported(model: nn.Module) -> str | None:
    """Why a classifier cannot be computed in this form; None = it can."""
    try:
        FusedClassifier(model)
    except NotImplementedError as reason:
        return str(reason)
    return None


class FusedClassifier:
    """Class logits of packed texts; callable as `evaluate.Forward`."""

    def __init__(self, model: nn.Module, *, compiled: bool = False) -> None:
        """Read the model's tensors.

        Args:
            model: a classifier of transformers, with or without peft's LoRA.
            compiled: for many batches of a few sizes: Triton kernels around q, k and v where they fit, else
                torch.compile for what lies between the matrix products, once for all layers.

        Raises:
            NotImplementedError: the model computes something else; the message says what.
        """
        wrapped: Any = model
        base: Any = wrapped.get_base_model() if hasattr(model, "get_base_model") else model
        backbone = getattr(base, base.base_model_prefix)
        refuse_other_arithmetic(backbone)
        self._model, self._backbone, self._head = base, backbone, getattr(base, tasks.HEAD)
        attention = backbone.layers[0].self_attn
        width = attention.head_dim
        self._heads = Heads(
            backbone.config.num_attention_heads, backbone.config.num_key_value_heads, width, attention.scaling
        )
        self._layers = [read_layer(layer, queries_apart=False) for layer in backbone.layers]
        self._norm = read_norm(backbone.norm)
        self._kernels = compiled and self._fits_kernels()
        if not self._kernels:
            self._layers[-1] = read_layer(backbone.layers[-1], queries_apart=True)
        self._before, self._after, self._before_last = before_attention, after_attention, before_last_attention
        if compiled and not self._kernels and all(layer.output.weight is not None for layer in self._layers):
            self._before, self._after = torch.compile(before_attention), torch.compile(after_attention)
            self._before_last = torch.compile(before_last_attention)

    @property
    def training(self) -> bool:
        """Whether LoRA's dropout is on: the model's own mode."""
        return bool(self._model.training)

    def __call__(self, batch: Any) -> Tensor:
        """float32 logits, (S, C), of a `Batch`: packed, or texts of one length."""
        tokens_T = batch.input_ids.flatten()
        segments, positions_T = batch.segments, batch.position_ids
        if segments is None:
            rows, length = batch.input_ids.shape
            starts = torch.arange(rows + 1, dtype=torch.int32, device=tokens_T.device) * length
            segments = Segments(starts, starts, length, length)
            positions_T = torch.arange(length, device=tokens_T.device).repeat(rows)
        with self._compiler_settings():
            return self.head(self.pooled(tokens_T, positions_T.flatten(), segments))

    def _compiler_settings(self) -> AbstractContextManager[object]:
        """A dropout is a constant of the compiled code: as a variable, a second one in a process cannot be compiled."""
        if self._after is after_attention:
            return nullcontext()
        settings: AbstractContextManager[object] = torch._dynamo.config.patch(specialize_float=True)
        return settings

    def head(self, pooled_SW: Tensor) -> Tensor:
        """float32 logits, (S, C)."""
        logits_SC: Tensor = self._head(pooled_SW.to(next(self._head.parameters()).dtype))
        return logits_SC.float()

    def pooled(self, tokens_T: Tensor, positions_T: Tensor, segments: Segments) -> Tensor:
        """The last hidden state of each segment's last query, after the final norm, (S, W)."""
        hidden_TW = self._backbone.embed_tokens(tokens_T)
        cos, sin = (part[0][:, None] for part in self._backbone.rotary_emb(hidden_TW[None], positions_T[None]))
        kernel = has_packed_kernel(hidden_TW.device, self._arithmetic(hidden_TW))
        self._any_length(hidden_TW, cos, sin)
        keys = len(tokens_T) if segments.key_index is None else len(segments.key_index)
        attention = PackedAttention(segments, len(tokens_T), keys, packed_kernel=kernel)
        by_kernels = self._pass_by_kernels(cos, sin) if self._kernels else None
        for index, layer in enumerate(self._layers[:-1]):
            if by_kernels is None:
                q, k, v = self._before(hidden_TW, cos, sin, layer, self._heads, self.training)
            else:
                q, k, v, hidden_TW = by_kernels(index, hidden_TW, *layer.before_attention)
            out = attention(q, k, v, self._heads.scale)
            self._any_length(hidden_TW, out)
            hidden_TW = self._after(hidden_TW, out, layer, self.training)
        last_S = segments.query_starts[1:].long() - 1
        ends = segments.last_queries()
        attention = PackedAttention(ends, len(last_S), keys, packed_kernel=kernel)
        layer = self._layers[-1]
        if by_kernels is None:
            self._any_length(hidden_TW)
            q, k, v = self._before_last(hidden_TW, last_S, cos, sin, layer, self._heads, self.training)
        else:
            q, k, v, hidden_TW = by_kernels(len(self._layers) - 1, hidden_TW, *layer.before_attention)
            q = q.index_select(0, last_S)
        out = attention(q, k, v, self._heads.scale)
        hidden_SW = after_attention(hidden_TW.index_select(0, last_S), out, layer, self.training)
        return rms_norm(hidden_SW, self._norm)

    def _any_length(self, *tensors: Tensor) -> None:
        """Tell the compiler that the number of tokens varies, so that it compiles once for all buckets."""
        if self._after is not after_attention:
            for tensor in tensors:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)

    def _fits_kernels(self) -> bool:
        """Whether what stands before every attention is what the Triton kernels compute."""
        gain = self._norm.gain
        if not gain.is_cuda or gain.dtype != torch.bfloat16:
            return False
        if any(layer.head_norms or layer.before_attention.gain.requires_grad for layer in self._layers):
            return False
        from llm_neo.models.lora_attention import fits

        return fits([layer.keys_values for layer in self._layers], self._heads.width)

    def _pass_by_kernels(self, cos: Tensor, sin: Tensor) -> "LoraAttention":
        from llm_neo.models.lora_attention import LoraAttention

        projections = [layer.keys_values for layer in self._layers]
        return LoraAttention(projections, self._heads[:3], cos.flatten(1), sin.flatten(1), training=self.training)

    def _arithmetic(self, hidden: Tensor) -> torch.dtype:
        kind = hidden.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
