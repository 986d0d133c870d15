"""The frozen teacher: what it is made of, and class logits for any text.

Shapes: N texts, C classes.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from llm_neo import tasks
from llm_neo.batching import encode
from llm_neo.evaluate import EngineName, classifier_forward, score_rows
from llm_neo.models import adapters, load
from llm_neo.models.load import LoadedModel, Placement
from llm_neo.progress import Progress


@dataclass(frozen=True)
class TeacherBase:
    """Where a teacher's base model is and how it is to be loaded.

    Attributes:
        folder: configuration, safetensors and tokenizer.
        spec: what the recipe calls it, for messages.
        fingerprint: sha256 of its files.
        where: device, dtype and quantisation.
        classes: names in label order.
        max_length_tokens: longer texts lose their end.
        seed: of a fresh head.
        trust_remote_code: run code of the model's folder.
        engine: the recipe's `runtime.engine`; shapes no answer beyond rounding.
    """

    folder: Path
    spec: str
    fingerprint: str
    where: Placement
    classes: tuple[str, ...]
    max_length_tokens: int
    seed: int
    trust_remote_code: bool = False
    engine: EngineName = "auto"

    def identity(self) -> dict[str, Any]:
        """All that shapes the loaded base, for fingerprints."""
        return {
            "base": self.fingerprint,
            "quantization": self.where.quantization,
            "dtype": str(self.where.dtype),
            "device": self.where.device.type,
            "classes": list(self.classes),
            "max_length_tokens": self.max_length_tokens,
        }


def fingerprint(**parts: Any) -> str:
    """sha256 (hexadecimal) of named values that JSON can write, independent of their order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Teacher(Protocol):
    """What the run needs of a teacher, whichever way it was made."""

    @property
    def fresh_head(self) -> bool:
        """The head is random: nothing has taught it the task."""

    @property
    def loaded(self) -> LoadedModel:
        """The base."""

    def score(self, ids: Sequence[str], texts: Sequence[tuple[str, ...]], progress: Progress) -> torch.Tensor:
        """float32 logits on the CPU, (N, C), columns in label order."""


@dataclass(frozen=True)
class ClassifierTeacher:
    """A decoder with a trained classification head."""

    loaded: LoadedModel
    model: torch.nn.Module
    columns: list[int]
    base: TeacherBase
    fresh_head: bool

    def score(self, ids: Sequence[str], texts: Sequence[tuple[str, ...]], progress: Progress) -> torch.Tensor:
        """float32 logits on the CPU, (N, C), columns in label order."""
        rows = encode(self.loaded.tokenizer, ids, texts, self.base.max_length_tokens)
        forward = classifier_forward(self.model, self.base.engine)
        logits_NC = score_rows(forward, rows, self.base.where.device, progress, label="teacher scores")
        return logits_NC[:, self.columns]


def load_classifier_teacher(
    base: TeacherBase, adapter: Path | None, *, trained_here: bool = False
) -> ClassifierTeacher:
    """A classifier as it is, or with a saved adapter and head on top.

    Args:
        base: the model.
        adapter: a folder that peft wrote; None = the model is a classifier already.
        trained_here: the head was trained on the data's classes, in their order, so no name can disagree.

    Raises:
        InputError: the files do not make a classifier of these classes.
    """
    config = load.load_config(base.folder, base.spec, base.trust_remote_code)
    columns = list(range(len(base.classes)))
    if adapter is None and not trained_here and load.is_classifier(config):
        columns = tasks.class_columns(config, base.classes)
    loaded = load_base_classifier(base)
    model = loaded.model if adapter is None else adapters.load_adapter(loaded.model, adapter)
    return ClassifierTeacher(loaded, model, columns, base, fresh_head=loaded.fresh_head and adapter is None)


def load_base_classifier(base: TeacherBase) -> LoadedModel:
    """The teacher's base with a head, fresh where the files have none.

    Raises:
        InputError: the folder holds no whole decoder.
    """
    return load.load_classifier(
        base.folder,
        base.spec,
        base.classes,
        base.where,
        max_length_tokens=base.max_length_tokens,
        seed=base.seed,
        trust_remote_code=base.trust_remote_code,
    )
