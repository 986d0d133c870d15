"""The only module that knows what the model is asked for: here, one class per text.

A causal language model would differ in these places alone: the model class, how labels are aligned, which
positions count and which figures are reported.

Shapes: R rows of a batch as the model sees it, T tokens of each, B texts, C classes, H hidden width.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from llm_neo.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

HEAD = "score"
"""The name of the classification head in the decoder classifiers of transformers."""


def model_class() -> type[Any]:
    """The transformers class that loads a model with a head for this task."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification


def check_head(model: "PreTrainedModel", spec: str) -> None:
    """Refuse architectures that do not pool the last token into a `score` head.

    Args:
        model: a classifier of transformers.
        spec: what the recipe calls it, for the message.

    Raises:
        InputError: the model is no decoder classifier, such as BERT, whose pooling differs.
    """
    if not isinstance(getattr(model, HEAD, None), torch.nn.Module) or model.config.is_encoder_decoder:
        raise InputError(
            f"the model {spec} is a {type(model).__name__}, which does not classify from the last token through a "
            f"'{HEAD}' head; choose a decoder such as Llama, Qwen, Mistral or SmolLM"
        )


def class_logits(
    model: "PreTrainedModel",
    input_ids_RT: torch.Tensor,
    position_ids_RT: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    last_token_B: torch.Tensor,
) -> torch.Tensor:
    """Logits of every text of a batch, its last token pooled.

    `use_cache=False` is what makes packed rows right: with a cache transformers takes no notice of where one
    text ends (`position_ids` restart at 0), and the explicit mask says so again.

    Args:
        model: a classifier of transformers, with or without injected adapters.
        input_ids_RT: tokens, (R, T) integers.
        position_ids_RT: position of each token in its own text, or None for one text a row.
        attention_mask: (1, 1, T, T) booleans, True = may look, or None for one text a row.
        last_token_B: index of each text's last token in the R * T flattened ones.

    Returns:
        float32 logits, (B, C).
    """
    backbone = getattr(model, model.base_model_prefix)
    hidden_RTH = backbone(
        input_ids=input_ids_RT, position_ids=position_ids_RT, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state
    pooled_BH = hidden_RTH.flatten(0, 1)[last_token_B]
    head = getattr(model, HEAD)
    logits_BC: torch.Tensor = head(pooled_BH.to(next(head.parameters()).dtype))
    return logits_BC.float()


def class_columns(config: "PretrainedConfig", classes: Sequence[str]) -> list[int]:
    """Which logit of an already fine-tuned classifier belongs to which class of the data.

    Names decide where the model has some ("NEGATIVE" is class "negative"); transformers' own place holders
    (LABEL_0, LABEL_1, ...) say nothing, so position decides.

    Args:
        config: the classifier's configuration, with `id2label`.
        classes: the names of the data's classes, in label order.

    Returns:
        For each class its column in the model's logits.

    Raises:
        InputError: another number of classes, or names that do not match.
    """
    id2label: dict[Any, str] = dict(config.id2label or {})
    names = [str(id2label[index]) for index in range(len(id2label))]
    if len(names) != len(classes):
        raise InputError(
            f"the model classifies into {len(names)} classes ({', '.join(names[:6])}) but the data has "
            f"{len(classes)} ({', '.join(classes[:6])}); choose a model made for this task or fine-tune one"
        )
    folded = [name.casefold() for name in names]
    if folded == [f"label_{i}" for i in range(len(names))] or all(name.isdigit() for name in classes):
        return list(range(len(classes)))
    missing = [name for name in classes if name.casefold() not in folded]
    if missing:
        raise InputError(
            f"the model has no class named {missing[0]!r}, its classes are {', '.join(names[:6])}; "
            "name data.classes like the model's, in any order of yours"
        )
    return [folded.index(name.casefold()) for name in classes]
