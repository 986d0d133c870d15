"""Variants a to d: distillation as a careful user writes it with transformers and peft, without LLM-Neo.

The teacher answers every batch again, under `no_grad`; texts are padded; steps are eager, with no synchronisation but
the one that ends the timed block.

Shapes: B rows of a batch, L tokens of each, C classes.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.workload import BATCH_ROWS, MAX_TOKENS
from llm_neo.models.load import quiet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from transformers import BitsAndBytesConfig, PreTrainedModel

    from benchmarks.models import Models
    from llm_neo.batching import TokenRows

TEMPERATURE, HARD_LABEL_WEIGHT = 2.0, 0.5
LEARNING_RATE, WEIGHT_DECAY = 5e-5, 0.01


@dataclass(frozen=True)
class Baseline:
    """What sets the baselines apart.

    Attributes:
        quantization: of the teacher.
        teacher_dtype: of the teacher's other weights, and of its answers.
        student_dtype: of the student's weights.
        autocast_dtype: of the student's products where its weights are wider; None = as the weights are.
        padded_to: tokens of every row; None = the longest row of the batch.
        lora: whether adapters are trained, and not all weights.
    """

    quantization: "BitsAndBytesConfig | None"
    teacher_dtype: torch.dtype
    student_dtype: torch.dtype
    autocast_dtype: torch.dtype | None = None
    padded_to: int | None = MAX_TOKENS
    lora: bool = True


def describe(variant: str, dtype: torch.dtype) -> Baseline:
    """The baseline of a letter.

    Args:
        variant: "a", "b", "c" or "d".
        dtype: bfloat16, or float32 where the processor has no units for it.
    """
    from transformers import BitsAndBytesConfig

    if variant == "a":
        # Alone, `load_in_4bit` means fp4 with products in float32.
        return Baseline(BitsAndBytesConfig(load_in_4bit=True), dtype, torch.float32)
    if variant == "d":
        autocast = dtype if dtype != torch.float32 else None
        return Baseline(None, dtype, torch.float32, autocast_dtype=autocast, lora=False)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return Baseline(nf4, dtype, dtype, padded_to=None if variant == "c" else MAX_TOKENS)


class Distillation:
    """Both models, the optimizer and the rows of one baseline."""

    def __init__(
        self, baseline: Baseline, models: "Models", rows: "TokenRows", labels: "NDArray[np.int64]", device: torch.device
    ) -> None:
        self._baseline, self._rows, self._labels, self._device = baseline, rows, labels, device
        self._teacher = models.teacher(baseline.teacher_dtype, baseline.quantization)
        self.student = _trainable(models.student(baseline.student_dtype), baseline.lora)
        self._pad = int(self._teacher.config.pad_token_id)
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=device.type == "cuda"
        )

    def train(self, batches: "Sequence[NDArray[np.int64]]") -> None:
        """One optimizer step for each batch, given as places in the rows, (B,)."""
        self.student.train()
        for batch in batches:
            self._step(batch)

    def _step(self, batch: "NDArray[np.int64]") -> None:
        inputs = self._collate(self._rows, batch)
        labels_B = torch.from_numpy(self._labels[batch]).to(self._device, non_blocking=True)
        with torch.no_grad():
            teacher_BC = self._teacher(**inputs).logits
        with self._autocast():
            student_BC = self.student(**inputs).logits
        hybrid_loss(student_BC.float(), teacher_BC.float(), labels_B).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def evaluate(self, rows: "TokenRows", batches: "Sequence[NDArray[np.int64]]") -> torch.Tensor:
        """The predicted class of the rows of each batch, on the CPU."""
        self.student.eval()
        with torch.no_grad(), self._autocast():
            predicted = [self.student(**self._collate(rows, batch)).logits.argmax(dim=-1) for batch in batches]
        return torch.cat(predicted).cpu()

    def _collate(self, rows: "TokenRows", batch: "NDArray[np.int64]") -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask`, (B, L) each, padded on the right."""
        length = self._baseline.padded_to or int(rows.lengths[batch].max())
        input_ids = np.full((len(batch), length), self._pad, np.int64)
        attention_mask = np.zeros_like(input_ids)
        for place, row in enumerate(batch):
            tokens = rows[row]
            input_ids[place, : len(tokens)] = tokens
            attention_mask[place, : len(tokens)] = 1
        arrays = {"input_ids": input_ids, "attention_mask": attention_mask}
        return {name: torch.from_numpy(array).to(self._device, non_blocking=True) for name, array in arrays.items()}

    def _autocast(self) -> AbstractContextManager[object]:
        if self._baseline.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._baseline.autocast_dtype)


def evaluation_batches(rows: "TokenRows") -> list["NDArray[np.int64]"]:
    """All rows in their order, 16 a batch."""
    return [np.arange(start, min(start + BATCH_ROWS, len(rows))) for start in range(0, len(rows), BATCH_ROWS)]


def hybrid_loss(student_BC: torch.Tensor, teacher_BC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """`w * cross-entropy + (1 - w) * T^2 * KL(teacher || student)`, means over B, nats."""
    hard = F.cross_entropy(student_BC, labels_B)
    soft = TEMPERATURE**2 * F.kl_div(
        F.log_softmax(student_BC / TEMPERATURE, dim=-1),
        F.softmax(teacher_BC / TEMPERATURE, dim=-1),
        reduction="batchmean",
    )
    return HARD_LABEL_WEIGHT * hard + (1 - HARD_LABEL_WEIGHT) * soft


def _trainable(student: "PreTrainedModel", lora: bool) -> torch.nn.Module:
    if not lora:
        return student.requires_grad_(True)
    with quiet():
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=["q_proj", "k_proj", "v_proj"],
            lora_dropout=0.1,
            bias="none",
            task_type="SEQ_CLS",
        )
        adapted: torch.nn.Module = get_peft_model(student, config)
    return adapted
