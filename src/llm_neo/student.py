"""The student: a pretrained base, perhaps with fewer layers, made ready to learn."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from llm_neo.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def select_layers(model: "PreTrainedModel", layers: int | Sequence[int] | None) -> None:
    """Keep some of the decoder's layers, in place.

    Args:
        model: a classifier of transformers.
        layers: None = all, N = the first N, or a list of indices counted from 0.

    Raises:
        InputError: the model has no such layer.
    """
    backbone = getattr(model, model.base_model_prefix)
    available = len(backbone.layers)
    if layers is None:
        return
    kept = list(range(layers)) if isinstance(layers, int) else list(layers)
    if max(kept) >= available:
        asked = f"{layers} layers" if isinstance(layers, int) else f"layer {max(kept)}"
        raise InputError(
            f"student.layers asks for {asked} but the model has {available} (0 to {available - 1}); lower it or set null"
        )
    backbone.layers = torch.nn.ModuleList(backbone.layers[index] for index in kept)
    for index, layer in enumerate(backbone.layers):
        layer.self_attn.layer_idx = index
    for config in {id(c): c for c in (model.config, backbone.config)}.values():
        config.num_hidden_layers = len(kept)
        if getattr(config, "layer_types", None):
            config.layer_types = [config.layer_types[index] for index in kept]
