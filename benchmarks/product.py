"""Variants e and f: LLM-Neo's own functions, with the settings of its recipe for SST-2.

Shapes: N rows, B rows of a batch, C classes.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch

from benchmarks.baseline import HARD_LABEL_WEIGHT, LEARNING_RATE, TEMPERATURE, WEIGHT_DECAY
from benchmarks.clock import Steady, now, steady
from benchmarks.workload import BATCH_ROWS
from llm_neo.engine import Objective
from llm_neo.evaluate import classifier_forward, score_rows
from llm_neo.losses import loss_of_rows
from llm_neo.models.adapters import add_adapters
from llm_neo.models.quantization import keep_weights_as_stored, quantization_config
from llm_neo.progress import SilentProgress
from llm_neo.recipe import Lora
from llm_neo.schedule import TrainSettings
from llm_neo.train import Listener, train
from llm_neo.train_state import Logged

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from benchmarks.models import Models
    from llm_neo.batching import TokenRows

Engine = Literal["plain", "captured"]


def load_teacher(models: "Models", dtype: torch.dtype) -> "PreTrainedModel":
    """The NF4 teacher, as `llm_neo.models.load` leaves it: weights kept as stored, the head in float32."""
    teacher = models.teacher(dtype, quantization_config("nf4", dtype))
    keep_weights_as_stored(teacher)
    teacher.score.float()
    return teacher


def load_student(models: "Models", dtype: torch.dtype, seed: int, layers: int | None = None) -> "PeftModel":
    """The student with its adapters; `layers` None = the usual number."""
    base = models.student(dtype, layers)
    base.score.float()
    return add_adapters(base, Lora(rank=4, alpha=8, dropout=0.1, targets=("q_proj", "k_proj", "v_proj")), seed)


def objective(labels_N: torch.Tensor, teacher_NC: torch.Tensor) -> Objective:
    """The hybrid loss of rows whose labels and targets lie on the model's device, as the student's stage makes it."""
    labelled_N = torch.ones_like(labels_N, dtype=torch.bool)
    return loss_of_rows(teacher_NC, labels_N, labelled_N, hard_label_weight=HARD_LABEL_WEIGHT, temperature=TEMPERATURE)


@dataclass(frozen=True)
class Trained:
    """What training took.

    Attributes:
        per_step: of the steps after the warm-up, evaluations left out.
        steps_timed: steps behind it.
        seconds: of all, from the call to the end, evaluations included.
        start_seconds: what all took more than as many usual steps: the set-up, compiling and capturing whenever it
            happens, and what the machine lost.
        engine: which one took the steps.
    """

    per_step: Steady
    steps_timed: int
    seconds: float
    start_seconds: float
    engine: str


class StepClock:
    """Notes the time whenever the loop reads its loss, and evaluates when it is asked to."""

    def __init__(
        self, student: torch.nn.Module, validation: "TokenRows | None", engine: Engine, device: torch.device
    ) -> None:
        self.evaluation_seconds = 0.0
        self._student, self._validation, self._engine, self._device = student, validation, engine, device
        self._began = now(device)
        self._marks: list[tuple[int, float]] = []

    def listener(self) -> Listener:
        """What the loop calls."""
        return Listener(log=self._log, evaluate=self._evaluate)

    def trained(self, warm_up: int, engine: str) -> Trained:
        """What the steps of `engine` took, the first `warm_up` apart."""
        after = [mark for mark in self._marks if mark[0] >= warm_up]
        pairs = pairwise(after)
        per_step = steady([(end - start) / (last - first) for (first, start), (last, end) in pairs])
        steps, seconds = after[-1]
        return Trained(
            per_step=per_step,
            steps_timed=steps - after[0][0],
            seconds=seconds + self.evaluation_seconds,
            start_seconds=max(0.0, seconds - steps * per_step.seconds),
            engine=engine,
        )

    def _log(self, logged: Logged) -> None:
        self._marks.append((logged.step, now(self._device) - self._began - self.evaluation_seconds))

    def _evaluate(self, step: int, epoch: float, training_loss: float) -> dict[str, Any]:
        assert self._validation is not None, "no evaluation is due without rows for it"
        self.evaluation_seconds += evaluate(self._student, self._validation, self._engine, self._device)
        return {}


def evaluate(student: torch.nn.Module, validation: "TokenRows", engine: Engine, device: torch.device) -> float:
    """Seconds of one evaluation of the student; it is left in evaluation mode."""
    began = now(device)
    student.eval()
    score_rows(classifier_forward(student, engine=engine), validation, device)
    return now(device) - began


def timed_training(
    student: torch.nn.Module,
    rows: "TokenRows",
    losses: Objective,
    engine: Engine,
    device: torch.device,
    *,
    warm_up: int,
    log_every: int,
    seed: int,
    batch_rows: int = BATCH_ROWS,
    validation: "TokenRows | None" = None,
    evaluate_every: int | None = None,
) -> Trained:
    """Train over all `rows` once, and say how long it took.

    Args:
        student: with adapters, on `device`.
        rows: one epoch of them.
        losses: of each row.
        engine: which of LLM-Neo's engines takes the steps.
        device: where the student is.
        warm_up: steps that are not steady yet, a multiple of `log_every`.
        log_every: steps between two readings of the loss.
        seed: of order and dropout.
        batch_rows: rows of a step.
        validation: rows of an evaluation.
        evaluate_every: steps between evaluations; None = none.
    """
    settings = TrainSettings(
        epochs=1,
        batch_size=batch_rows,
        micro_batch_size=None,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        schedule="linear",
        warmup_fraction=0.0,
        max_gradient_norm=1.0,
        seed=seed,
        evaluate_every_steps=evaluate_every,
        checkpoint_every_steps=None,
        log_every_steps=log_every,
    )
    clock = StepClock(student, validation, engine, device)
    result = train(
        student,
        rows,
        losses,
        settings,
        device=device,
        autocast_dtype=None,
        listener=clock.listener(),
        progress=SilentProgress(),
        label="bench",
        engine=engine,
    )
    return clock.trained(warm_up, result.engine)
