"""The student: a pretrained base, perhaps with fewer layers, made ready to learn."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from llm_neo.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_PER_LAYER = frozenset({"layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers"})
"""What configurations hold a value of for each layer."""
_LAYER_NUMBERS = frozenset({"mlp_only_layers"})
"""What they list layers in by number."""


def select_layers(model: "PreTrainedModel", layers: int | Sequence[int] | None) -> None:
    """Keep some of the decoder's layers, in place.

    Args:
        model: a classifier of transformers.
        layers: None = all, N = the first N, or a list of indices counted from 0.

    Raises:
        InputError: the model has no such layer, or its configuration cannot describe what is left.
    """
    if layers is None:
        return
    backbone = getattr(model, model.base_model_prefix)
    if not hasattr(backbone, "layers"):
        raise InputError(
            f"student.layers: the layers of a {type(model).__name__} cannot be chosen here; set it to null, or "
            "choose a decoder such as Llama, Qwen, Mistral or SmolLM"
        )
    available = len(backbone.layers)
    kept = list(range(layers)) if isinstance(layers, int) else list(layers)
    if max(kept) >= available:
        asked = f"{layers} layers" if isinstance(layers, int) else f"layer {max(kept)}"
        raise InputError(
            f"student.layers asks for {asked} but the model has {available} (0 to {available - 1}); "
            "lower it or set null"
        )
    backbone.layers = torch.nn.ModuleList(backbone.layers[index] for index in kept)
    for index, layer in enumerate(backbone.layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    for config in {id(c): c for c in (model.config, backbone.config)}.values():
        _describe(config, kept, available)
    _refuse_undescribed(model, layers)


def _describe(config: "PretrainedConfig", kept: Sequence[int], available: int) -> None:
    """Make a configuration that of the kept layers: how many, and what sets each apart from the others."""
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == available and name in _PER_LAYER:
            setattr(config, name, [value[index] for index in kept])
        elif isinstance(value, list) and name in _LAYER_NUMBERS:
            setattr(config, name, [place for place, index in enumerate(kept) if index in value])
    config.num_hidden_layers = len(kept)


def _refuse_undescribed(model: "PreTrainedModel", layers: int | Sequence[int]) -> None:
    """Refuse what could not be loaded again: the configuration makes other layers than the kept ones."""
    with torch.device("meta"):
        described = type(model)(copy.deepcopy(model.config))
    shapes, expected = ({n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (model, described))
    if shapes != expected:
        odd = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
        raise InputError(
            f"student.layers: the layers {layers} of a {type(model).__name__} cannot stand alone, since its "
            f"configuration gives their places other weights ({odd[0]}); keep other layers or set null"
        )
