"""A tiny random Llama with adapters, texts, labels and a teacher's logits; trained by the real loop and engines."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny import toy_sentences

from llm_neo.batching import TokenRows, encode
from llm_neo.engine import StepFigures
from llm_neo.losses import RowLosses, loss_of_rows
from llm_neo.models import adapters
from llm_neo.models.load import LoadedModel, Placement, load_classifier
from llm_neo.progress import SilentProgress
from llm_neo.recipe import Lora
from llm_neo.train import Listener, Logged, TrainSettings, train

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROWS, CLASSES = 22, 3
"""No multiple of the batch sizes below."""
STILL = 1e-12
"""A learning rate that moves nothing: every step then measures the same weights."""

Objective = Callable[[torch.Tensor, torch.Tensor], RowLosses]


@dataclass(frozen=True)
class Student:
    """A model that can learn, and the texts that it learns from."""

    loaded: LoadedModel
    model: torch.nn.Module
    rows: TokenRows

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Copies of all that learns."""
        return {name: tensor.clone() for name, tensor in adapters.trainable_tensors(self.model).items()}


def student(folder: Path, dtype: torch.dtype = torch.float32) -> Student:
    """The model in `folder` with LoRA of rank 4 whose both halves are random, so that each adapter says something."""
    where = Placement(DEVICE, dtype)
    loaded = load_classifier(folder, "tiny", ["a", "b", "c"], where, max_length_tokens=32, seed=1)
    model = adapters.add_adapters(loaded.model, Lora(rank=4, alpha=8, dropout=0.0), 5)
    draw = torch.Generator().manual_seed(6)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
    texts = [(text,) for text, _ in toy_sentences(ROWS)]
    rows = encode(loaded.tokenizer, [f"train:{row}" for row in range(ROWS)], texts, 32)
    return Student(loaded, model.to(DEVICE), rows)


def teacher_logits() -> torch.Tensor:
    """What some teacher says, (N, C)."""
    return 2.0 * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(9))


def labels() -> tuple[torch.Tensor, torch.Tensor]:
    """A class for each row, and which rows have it: 15 of 22."""
    draw = torch.Generator().manual_seed(9)
    return torch.randint(0, CLASSES, (ROWS,), generator=draw), torch.arange(ROWS) % 3 != 0


def objective(
    teacher_NC: torch.Tensor | None = None, labelled_N: torch.Tensor | None = None, *, w: float = 0.4, t: float = 2.5
) -> Objective:
    """The product's loss of these rows."""
    labels_N, usual_N = labels()
    return loss_of_rows(
        (teacher_logits() if teacher_NC is None else teacher_NC).to(DEVICE),
        labels_N.to(DEVICE),
        (usual_N if labelled_N is None else labelled_N).to(DEVICE),
        hard_label_weight=w,
        temperature=t,
    )


def settings(**changes: object) -> TrainSettings:
    """One epoch of steps of 8, 8 and 6 rows."""
    values: dict[str, object] = {
        "epochs": 1,
        "batch_size": 8,
        "micro_batch_size": None,
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup_fraction": 0.0,
        "max_gradient_norm": None,
        "seed": 3,
        "evaluate_every_steps": None,
        "checkpoint_every_steps": None,
        "log_every_steps": 1,
    }
    return TrainSettings(**{**values, **changes})  # type: ignore[arg-type]


def learn(
    learner: Student, engine: str, losses: Objective, after_step: Callable[[], object] = lambda: None, **changes: object
) -> list[StepFigures]:
    """What each step measured, by the loop of the product; `engine` is "plain", "fused" or "captured"."""
    lines: list[StepFigures] = []

    def keep(line: Logged) -> None:
        lines.append(line.figures)
        after_step()

    result = train(
        learner.model,
        learner.rows,
        losses,
        settings(**changes),
        device=DEVICE,
        autocast_dtype=None,
        listener=Listener(keep, lambda *_: {}),
        progress=SilentProgress(),
        label="test",
        engine="auto" if engine == "fused" else engine,  # type: ignore[arg-type]
    )
    assert result.engine == engine
    return lines
