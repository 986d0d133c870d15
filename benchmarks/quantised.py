"""Random decoders that are 4-bit from the start: layer by layer, so that no whole copy in bf16 is ever held."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from transformers import LlamaForSequenceClassification
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from benchmarks.shapes import Shape

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel


def random_classifier(
    shape: Shape, dtype: torch.dtype, quantization: "BitsAndBytesConfig | None", device: torch.device
) -> "PreTrainedModel":
    """A Llama classifier with random weights, frozen, in evaluation mode.

    Args:
        shape: of the decoder.
        dtype: of all weights that are not 4-bit: embeddings, norms and head.
        quantization: of the linear layers; None = none.
        device: where it is built.
    """
    config = shape.config()
    config.num_hidden_layers = 0
    with torch.device(device), _default_dtype(dtype):
        model = LlamaForSequenceClassification(config)
        config.num_hidden_layers = shape.layers
        for index in range(shape.layers):
            layer = LlamaDecoderLayer(config, index)
            if quantization is not None:
                _quantise(layer, quantization, device)
            model.model.layers.append(layer.requires_grad_(False))
    model.config.use_cache = False
    model.config._attn_implementation = "sdpa"
    model.requires_grad_(False)
    return model.eval()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _quantise(layer: torch.nn.Module, quantization: "BitsAndBytesConfig", device: torch.device) -> None:
    """Replace the linear layers as transformers does while it loads a checkpoint with this configuration."""
    import bitsandbytes as bnb

    linear = [(name, module) for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)]
    for name, module in linear:
        with torch.device("meta"):
            small = bnb.nn.Linear4bit(
                module.in_features,
                module.out_features,
                bias=False,
                compute_dtype=quantization.bnb_4bit_compute_dtype,
                compress_statistics=quantization.bnb_4bit_use_double_quant,
                quant_type=quantization.bnb_4bit_quant_type,
                quant_storage=quantization.bnb_4bit_quant_storage,
            )
        small.weight = bnb.nn.Params4bit(
            module.weight.data,
            requires_grad=False,
            compress_statistics=quantization.bnb_4bit_use_double_quant,
            quant_type=quantization.bnb_4bit_quant_type,
            quant_storage=quantization.bnb_4bit_quant_storage,
            module=small,
        ).to(device)
        layer.set_submodule(name, small)
