"""The shapes of Llama models, and what their matrix products cost.

A product of the decoder's linear layers is what counts as work here: embeddings, norms, attention's own products and
the head are left out.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaConfig, PretrainedConfig


@dataclass(frozen=True)
class Shape:
    """A Llama model without its weights.

    Attributes:
        hidden: width.
        intermediate: width of the gated feed-forward part.
        layers: decoder layers.
        heads: of queries.
        kv_heads: of keys and values.
        vocabulary: tokens.
        tied: embeddings are the output matrix too.
        positions: the longest text.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    positions: int = 8192

    def config(self) -> "LlamaConfig":
        """What transformers builds the model from; the last token of the vocabulary pads."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.positions,
            tie_word_embeddings=self.tied,
            bos_token_id=0,
            eos_token_id=self.vocabulary - 1,
            pad_token_id=self.vocabulary - 1,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
            num_labels=2,
        )


LLAMA_8B = Shape(4096, 14336, 32, 32, 8, 128256, tied=False)
LLAMA_1B = Shape(2048, 8192, 16, 32, 8, 128256, tied=True)
TOY_TEACHER = Shape(128, 384, 4, 4, 2, 512, tied=False, positions=512)
TOY_STUDENT = Shape(64, 192, 2, 2, 1, 512, tied=True, positions=512)


def layer_products(config: "PretrainedConfig") -> list[tuple[int, int]]:
    """(inputs, outputs) of the seven linear layers of one decoder layer: q, k, v, o, gate, up, down."""
    width = config.hidden_size
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys, inner = (
        head * config.num_attention_heads,
        head * config.num_key_value_heads,
        config.intermediate_size,
    )
    return [
        (width, queries),
        (width, keys),
        (width, keys),
        (queries, width),
        (width, inner),
        (width, inner),
        (inner, width),
    ]


def product_parameters(config: "PretrainedConfig") -> int:
    """P: weights of the linear layers of all decoder layers."""
    return int(config.num_hidden_layers) * sum(inputs * outputs for inputs, outputs in layer_products(config))


def attention_share(config: "PretrainedConfig", length: int) -> float:
    """Attention's own part of the products of one training step with frozen weights, 0 to 1.

    Two products of `length` by `length` a head, half of it masked, forward once and backward two and a half times (as
    flash attention does), against twice the linear layers' products forward and once backward (towards the inputs).

    Args:
        config: of the model.
        length: tokens of each text.
    """
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    attention = 3.5 * 2 * width * length * config.num_hidden_layers
    return float(attention) / (attention + 4 * product_parameters(config))
