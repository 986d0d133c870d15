"""The second half of a run: load the student, train it on labels and targets, measure it as it learns.

Shapes: N rows of a split, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llm_neo import metrics
from llm_neo.assets import ModelSource
from llm_neo.batching import TokenRows, encode
from llm_neo.checkpoint import CheckpointStore
from llm_neo.data import Dataset, Split
from llm_neo.engine import Objective
from llm_neo.engines import EngineUsed
from llm_neo.evaluate import classifier_forward, score_rows, select_rows
from llm_neo.losses import loss_of_rows
from llm_neo.metrics import Scores
from llm_neo.models import adapters, load
from llm_neo.models.adapters import ParameterCount
from llm_neo.models.layers import select_layers
from llm_neo.models.load import Placement
from llm_neo.recipe import Recipe, Train
from llm_neo.run.setting import Setting
from llm_neo.schedule import TrainSettings
from llm_neo.targets import Targets
from llm_neo.train import Listener, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Student:
    """A model that is ready to learn.

    Attributes:
        model: what is trained: the base with adapters, or the base itself.
        base: the classifier of transformers inside it.
        tokenizer: the one that is saved with it.
        parameters: trainable and all weights.
        own_base: nobody else has its base, since layers were taken away or the files converted here.
        source: where the pretrained model came from.
    """

    model: torch.nn.Module
    base: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    parameters: ParameterCount
    own_base: bool
    source: ModelSource


@dataclass(frozen=True)
class Evaluation:
    """The student on validation rows, after some step.

    Attributes:
        logits_NC: float32 on the CPU.
        scores: against the labels.
        agreement: share of rows where student and teacher predict the same class.
        soft_loss: mean temperature-scaled divergence from the teacher, nats.
    """

    logits_NC: torch.Tensor
    scores: Scores
    agreement: float
    soft_loss: float


@dataclass(frozen=True)
class Learnt:
    """What the training gave.

    Attributes:
        final: the last step's figures on all validation rows.
        evaluations: rows of the evaluation table, the last step's included, as `run.json` has them.
        sample_rows: validation rows of the evaluations before the last.
        engine: which one took the steps.
    """

    final: Evaluation
    evaluations: tuple[dict[str, Any], ...]
    sample_rows: int
    engine: EngineUsed


def load_student(recipe: Recipe, classes: tuple[str, ...], source: ModelSource, setting: Setting) -> Student:
    """The recipe's student on the run's device, its trainable weights in float32.

    Raises:
        InputError: the model, its layers or its LoRA targets are not as the recipe says.
    """
    lora = recipe.student.lora
    dtype = torch.float32 if lora is None else setting.precision.dtype
    loaded = load.load_classifier(
        source.folder,
        source.spec,
        classes,
        Placement(setting.device, dtype),
        max_length_tokens=recipe.data.max_length_tokens,
        seed=recipe.train.seed,
        trust_remote_code=recipe.runtime.trust_remote_code,
    )
    select_layers(loaded.model, recipe.student.layers)
    if lora is None:
        model: torch.nn.Module = adapters.open_all_weights(loaded.model)
    else:
        model = adapters.add_adapters(loaded.model, lora, recipe.train.seed)
    count = adapters.count_parameters(model)
    setting.progress.say(
        f"student: {count.trainable:,} of {count.total:,} parameters are trained = {100 * count.share:.4f} %"
    )
    own_base = recipe.student.layers is not None or source.converted
    return Student(model, loaded.model, loaded.tokenizer, count, own_base, source)


def learn(
    student: Student, recipe: Recipe, data: Dataset, targets: Targets, setting: Setting, *, identity: Mapping[str, Any]
) -> Learnt:
    """Train the student and measure it on the way and at the end.

    Args:
        student: is trained in place and left in evaluation mode.
        recipe: loss and training.
        data: rows to learn from and to measure on.
        targets: the teacher's logits for all of them.
        setting: the run's surroundings.
        identity: everything that shapes the training, for its checkpoints.

    Raises:
        NonFiniteError: a loss or gradient is not finite.
    """
    tokens = _encode(student, data.train, recipe)
    judge = Judge(student, recipe, data, targets, setting)
    result = train(
        student.model,
        tokens,
        _objective(recipe, data.train, targets, setting.device),
        train_settings(recipe.train),
        device=setting.device,
        autocast_dtype=setting.precision.dtype if recipe.student.lora is None else None,
        listener=Listener(
            log=partial(setting.log, "train"), evaluate=judge.midway, begin=partial(setting.begin, "train")
        ),
        progress=setting.progress,
        label="student training",
        store=CheckpointStore(setting.run.checkpoints / "student", identity),
        engine=recipe.runtime.engine,
    )
    student.model.eval()
    final = judge.evaluate(None)
    last = judge.table_row(result.steps, float(recipe.train.epochs), result.training_loss, final)
    return Learnt(final, (*result.evaluations, last), judge.sample_rows, result.engine)


def train_settings(section: Train) -> TrainSettings:
    """The recipe's `train` section as the loop takes it."""
    return TrainSettings(**section.model_dump(exclude={"evaluate_rows"}))


def _encode(student: Student, split: Split, recipe: Recipe) -> TokenRows:
    ids, texts = [row.id for row in split.rows], [row.text for row in split.rows]
    return encode(student.tokenizer, ids, texts, recipe.data.max_length_tokens)


def _objective(recipe: Recipe, split: Split, targets: Targets, device: torch.device) -> Objective:
    """The hybrid loss of the split's rows; labels and targets lie on the device."""
    labels_N = torch.tensor([row.label or 0 for row in split.rows], device=device)
    labelled_N = torch.tensor([row.label is not None for row in split.rows], device=device)
    teacher_NC = targets.of([row.id for row in split.rows]).to(device)
    return loss_of_rows(
        teacher_NC,
        labels_N,
        labelled_N,
        hard_label_weight=recipe.loss.hard_label_weight,
        temperature=recipe.loss.temperature,
    )


class Judge:
    """Measures the student against labels and teacher.

    The evaluations before the last may look at a fixed sample of the validation rows, drawn once from the seed.

    Attributes:
        validation: tokens of the validation texts.
        sample_rows: how many of them the evaluations before the last look at.
    """

    def __init__(self, student: Student, recipe: Recipe, data: Dataset, targets: Targets, setting: Setting) -> None:
        self.validation = _encode(student, data.validation, recipe)
        rows = len(self.validation)
        self.sample_rows = min(recipe.train.evaluate_rows or rows, rows)
        draw = np.random.Generator(np.random.PCG64(recipe.train.seed)).permutation(rows)
        self._sample = np.sort(draw[: self.sample_rows]).astype(np.int64)
        self._labels_N = torch.tensor([row.label for row in data.validation.rows])
        self._teacher_NC = targets.of([row.id for row in data.validation.rows])
        self._student, self._setting, self._engine = student, setting, recipe.runtime.engine
        self._classes, self._temperature = len(data.classes), recipe.loss.temperature

    def midway(self, step: int, epoch: float, training_loss: float) -> dict[str, Any]:
        """The table's row after `step` steps, on the sample."""
        self._student.model.eval()
        return self.table_row(step, epoch, training_loss, self.evaluate(self._sample))

    def evaluate(self, chosen: "np.ndarray[tuple[int], np.dtype[np.int64]] | None") -> Evaluation:
        """The student on the chosen validation rows; None = all of them."""
        rows = self.validation if chosen is None else select_rows(self.validation, chosen)
        place = slice(None) if chosen is None else torch.from_numpy(chosen)
        with self._setting.measure("evaluate"):
            forward = classifier_forward(self._student.model, self._engine)
            logits_NC = score_rows(forward, rows, self._setting.device, self._setting.progress, label="evaluation")
        teacher_NC = self._teacher_NC[place]
        return Evaluation(
            logits_NC=logits_NC,
            scores=metrics.score_predictions(logits_NC, self._labels_N[place], self._classes),
            agreement=metrics.agreement(logits_NC, teacher_NC),
            soft_loss=metrics.soft_loss(logits_NC, teacher_NC, self._temperature),
        )

    def table_row(self, step: int, epoch: float, training_loss: float, evaluation: Evaluation) -> dict[str, Any]:
        """One row of the seed's table with what else an evaluation measured."""
        scores = evaluation.scores
        self._setting.progress.say(
            f"step {step}: training loss {training_loss:.4f}, validation loss {scores.loss:.4f}, "
            f"accuracy {scores.accuracy:.4f} on {scores.rows} rows, agreement {evaluation.agreement:.4f}"
        )
        named = {
            "validation_loss": scores.loss,
            "accuracy": scores.accuracy,
            "agreement": evaluation.agreement,
        }
        self._setting.track("evaluate", step, named)
        return {
            "step": step,
            "training_loss": training_loss,
            "epoch": epoch,
            "validation_loss": scores.loss,
            "accuracy": scores.accuracy,
            "f1": scores.f1,
            "precision": scores.precision,
            "recall": scores.recall,
            "rows": scores.rows,
            "accuracy_interval": list(scores.accuracy_interval),
            "agreement": evaluation.agreement,
            "soft_loss": evaluation.soft_loss,
            "calibration_error": scores.calibration_error,
        }
