"""One decoder layer of the Llama family: the tensors that it reads and its arithmetic over packed texts.

Shapes: T tokens, S segments, W hidden width, H heads of queries, G heads of keys and values, D their width.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_neo.models.elementwise import FrozenNorm, GatedPair, GatedUnit, RotateJoint, gated_in_place, turned
from llm_neo.models.projection import Projection, joined, project, project_each

FAMILY = frozenset({"LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"})
"""Backbones of transformers with this arithmetic."""


class Norm(NamedTuple):
    """A root-mean-square norm: gain (W,) and what keeps it from dividing by 0."""

    gain: Tensor
    epsilon: float


class Layer(NamedTuple):
    """One decoder layer.

    Attributes:
        before_attention: norm of the attention's input.
        keys_values: of all tokens; the queries come first, unless they stand apart.
        queries: of the last layer, which needs them for the pooled tokens alone; None where they do not stand apart.
        head_norms: of each head's queries and keys (Qwen3), or None.
        output: of the attention.
        before_mlp: norm of the MLP's input.
        gate_up: the MLP's first product.
        down: its second.
    """

    before_attention: Norm
    keys_values: Projection
    queries: Projection | None
    head_norms: tuple[Norm, Norm] | None
    output: Projection
    before_mlp: Norm
    gate_up: Projection
    down: Projection


class Heads(NamedTuple):
    """H, G, D and what scores are multiplied by."""

    queries: int
    keys: int
    width: int
    scale: float


def before_attention(
    x_TW: Tensor, cos: Tensor, sin: Tensor, layer: Layer, heads: Heads, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (T, H, D), keys and values (T, G, D) of a layer, the first two turned to their positions."""
    normed = rms_norm(x_TW, layer.before_attention)
    if layer.keys_values.weight is None and layer.head_norms is None and not torch.is_grad_enabled():
        # Three outputs apart, so that they need not be copied side by side.
        each = project_each(normed, layer.keys_values, training=training)
        q, k, v = (part.view(len(x_TW), -1, heads.width) for part in each)
        # In place of another dtype the turning itself would be rounded.
        turn = turned if cos.dtype == q.dtype else rotated
        return turn(q, cos, sin).to(v.dtype), turn(k, cos, sin).to(v.dtype), v
    joint = project(normed, layer.keys_values, training=training)
    if layer.head_norms is None and cos.dtype == joint.dtype and not torch.compiler.is_compiling():
        return _rotated_joint(joint, cos, sin, heads)
    q, k, v = joint.view(len(x_TW), -1, heads.width).split([heads.queries, heads.keys, heads.keys], dim=1)
    if layer.head_norms is None:
        both = rotated(joint.view(len(x_TW), -1, heads.width)[:, : heads.queries + heads.keys], cos, sin)
        q, k = both.split([heads.queries, heads.keys], dim=1)
    else:
        q, k = (rotated(rms_norm(part, n), cos, sin) for part, n in zip((q, k), layer.head_norms, strict=True))
    # Under autocast positions are float32 and would widen the two.
    return q.to(v.dtype), k.to(v.dtype), v


def before_last_attention(
    x_TW: Tensor, last_S: Tensor, cos: Tensor, sin: Tensor, layer: Layer, heads: Heads, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with queries for the tokens `last_S` alone, (S, H, D)."""
    assert layer.queries is not None, "the last layer has its queries apart"
    normed = rms_norm(x_TW, layer.before_attention)
    k, v = project(normed, layer.keys_values, training=training).view(len(x_TW), -1, heads.width).chunk(2, dim=1)
    q = project(normed[last_S], layer.queries, training=training).view(len(last_S), -1, heads.width)
    if layer.head_norms is not None:
        q, k = (rms_norm(part, norm) for part, norm in zip((q, k), layer.head_norms, strict=True))
    return rotated(q, cos[last_S], sin[last_S]).to(v.dtype), rotated(k, cos, sin).to(v.dtype), v


def after_attention(x_TW: Tensor, out_THD: Tensor, layer: Layer, training: bool) -> Tensor:
    """What a layer makes of its attention's output: the next layer's input, (T, W)."""
    x_TW = project(out_THD.flatten(1), layer.output, training=training, onto=x_TW)
    normed, x_TW = _norm_and_input(x_TW, layer.before_mlp)
    if layer.gate_up.weight is None:
        inner = _gated_pair(*project_each(normed, layer.gate_up, training=training))
    else:
        inner = gated(project(normed, layer.gate_up, training=training))
    return project(inner, layer.down, training=training, onto=x_TW)


def gated(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of the two side by side, (T, 2 I) -> (T, I) (Shazeer 2020, SwiGLU)."""
    if torch.compiler.is_compiling():
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
    out: Tensor = GatedUnit.apply(gate_up)  # type: ignore[no-untyped-call]
    return out


def _gated_pair(gate: Tensor, up: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return gated_in_place(gate, up)
    out: Tensor = GatedPair.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


def rms_norm(x: Tensor, norm: Norm) -> Tensor:
    """`gain * x / sqrt(mean(x^2) + epsilon)`, computed in float32 as transformers does (Zhang and Sennrich 2019)."""
    return _norm_and_input(x, norm)[0]


def _norm_and_input(x: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """The norm, and x as it goes on beside it."""
    if not (norm.gain.requires_grad or torch.compiler.is_compiling()):
        both: tuple[Tensor, Tensor] = FrozenNorm.apply(x, norm.gain, norm.epsilon)  # type: ignore[no-untyped-call]
        return both
    precise = x.float()
    scaled = precise * torch.rsqrt(precise.pow(2).mean(dim=-1, keepdim=True) + norm.epsilon)
    return norm.gain * scaled.to(x.dtype), x


def _rotated_joint(joint: Tensor, cos: Tensor, sin: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    parts: tuple[Tensor, Tensor, Tensor] = RotateJoint.apply(joint, cos, sin, heads[:3])  # type: ignore[no-untyped-call]
    return parts


def rotated(x_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    """Rotary position embedding in the half-split layout of transformers (Su et al. 2021, section 3)."""
    first, second = x_THD.chunk(2, dim=-1)
    return x_THD * cos_T1D + torch.cat((-second, first), dim=-1) * sin_T1D


def read_layer(layer: Any, *, queries_apart: bool) -> Layer:
    """A layer of transformers as this module computes it, weights not copied; in the last one queries may stand apart.

    Raises:
        NotImplementedError: a linear layer computes something else; the message says what.
    """
    attention, mlp = layer.self_attn, layer.mlp
    three = (attention.q_proj, attention.k_proj, attention.v_proj)
    head_norms = (read_norm(attention.q_norm), read_norm(attention.k_norm)) if hasattr(attention, "q_norm") else None
    return Layer(
        before_attention=read_norm(layer.input_layernorm),
        keys_values=joined(three[1:] if queries_apart else three),
        queries=joined(three[:1]) if queries_apart else None,
        head_norms=head_norms,
        output=joined([attention.o_proj]),
        before_mlp=read_norm(layer.post_attention_layernorm),
        gate_up=joined([mlp.gate_proj, mlp.up_proj]),
        down=joined([mlp.down_proj]),
    )


def read_norm(module: Any) -> Norm:
    """A norm of transformers."""
    return Norm(module.weight, float(module.variance_epsilon))


def refuse_other_arithmetic(backbone: Any) -> None:
    """Refuse a decoder of transformers that computes something else.

    Raises:
        NotImplementedError: the message says what.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = backbone.config
    for module in backbone.modules():
        if isinstance(module, BaseTunerLayer) and not type(module).__module__.startswith("peft.tuners.lora."):
            raise NotImplementedError(f"its adapters are not LoRA ({type(module).__name__})")
    if type(backbone).__name__ not in FAMILY:
        raise NotImplementedError(f"a {type(backbone).__name__} is not of the Llama family")
    if getattr(config, "hidden_act", None) != "silu":
        raise NotImplementedError(f"the activation {getattr(config, 'hidden_act', None)} is not SiLU")
    if getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None):
        raise NotImplementedError("its attention looks at a sliding window")
    if getattr(config, "attention_dropout", 0.0):
        raise NotImplementedError("its attention has dropout")
