"""Whether a model can do its part in a run, as far as that can be told before a weight is read."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llm_neo import tasks
from llm_neo.errors import InputError
from llm_neo.models.adapters import check_targets
from llm_neo.models.layers import select_layers
from llm_neo.models.load import load_config, load_tokenizer, named_failures
from llm_neo.recipe.tree import Lora

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def check_model(
    folder: Path,
    spec: str,
    *,
    max_length_tokens: int,
    trust_remote_code: bool = False,
    prompted: bool = False,
    layers: int | Sequence[int] | None = None,
    lora: tuple[str, Lora] | None = None,
) -> "PreTrainedTokenizerBase":
    """Refuse a model that would fail later, after what costs: the student is loaded when the teacher is done.

    The model is built without memory for its weights; of the weight files only the headers are read.

    Args:
        folder: configuration, safetensors and tokenizer.
        spec: what the recipe calls the model, for messages.
        max_length_tokens: the limit that the tokenizer will have.
        trust_remote_code: run code of the model's folder.
        prompted: it is to be used as a language model, not as a classifier.
        layers: as `layers.select_layers` takes them.
        lora: adapters to be added, and the recipe's key that they are from.

    Returns:
        Its tokenizer.

    Raises:
        InputError: the model is damaged, no decoder, or not as the recipe wants it.
    """
    config = load_config(folder, spec, trust_remote_code)
    tokenizer = load_tokenizer(folder, spec, config, max_length_tokens, trust_remote_code)
    _check_weight_files(folder)
    if prompted and not _has_classifier(config):
        return tokenizer
    with named_failures(f"the model {spec}"), torch.device("meta"):
        outline = tasks.model_class().from_config(
            config, attn_implementation="sdpa", trust_remote_code=trust_remote_code
        )
    tasks.check_head(outline, spec)
    select_layers(outline, layers)
    if lora is not None:
        check_targets(outline, lora[1].targets, lora[0])
    return tokenizer


def _has_classifier(config: "PretrainedConfig") -> bool:
    """Whether transformers has a classifier of this architecture; it lacks some of decoders, but none of encoders."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    return type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


def _check_weight_files(folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} is damaged ({error}); fetch it again") from error
