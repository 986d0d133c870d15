"""What a finished run leaves in its directory: the student, the record, the predictions, the picture."""

import json
import shutil
from dataclasses import asdict, dataclass

import torch

from llm_neo import metrics, report
from llm_neo.assets.cache import file_sha256
from llm_neo.assets.seals import checksums
from llm_neo.data import Dataset
from llm_neo.export import save_student
from llm_neo.files import filled_folder, write_text_atomically
from llm_neo.intervals import paired_difference
from llm_neo.reading import Reading
from llm_neo.recipe import Recipe
from llm_neo.run.directory import RunDirectory
from llm_neo.run.record import (
    BestRecord,
    DoubtsRecord,
    Environment,
    EvaluationRecord,
    GateRecord,
    LossRecord,
    RunRecord,
    StageRecord,
    StudentRecord,
    TeacherRecord,
    write_run,
)
from llm_neo.run.setting import Setting
from llm_neo.runtime import versions
from llm_neo.student_base import BASE_FOLDER
from llm_neo.student_stage import Learnt, Student
from llm_neo.teacher_stage import Taught

MODEL_CARD = "README.md"
STAGES = ("data", "teacher", "targets", "train", "evaluate")


@dataclass(frozen=True)
class Result:
    """Everything that a run knows at its end."""

    recipe: Recipe
    data: Dataset
    reading: Reading
    taught: Taught
    student: Student
    learnt: Learnt
    setting: Setting

    @property
    def teacher_NC(self) -> torch.Tensor:
        """The teacher's logits of the validation rows."""
        return self.taught.targets.of([row.id for row in self.data.validation.rows])

    @property
    def labels_N(self) -> torch.Tensor:
        """The labels of the validation rows."""
        return torch.tensor([row.label for row in self.data.validation.rows])


def write_result(result: Result) -> RunRecord:
    """Write the run's files; `run.json` last, since a folder with it is a finished run.

    Raises:
        ResourceError: the disk is full.
    """
    run, recipe = result.setting.run, result.recipe
    # What a run that was killed right here left of it; nobody can have used it.
    shutil.rmtree(run.student, ignore_errors=True)
    with filled_folder(run.student) as stage:
        save_student(result.student, recipe, stage)
    record = run_record(result)
    write_text_atomically(run.student / MODEL_CARD, report.model_card(record, recipe))
    write_text_atomically(run.predictions, _predictions(result))
    report.draw_curves(run.metrics, record, run.curves)
    record = record.model_copy(update={"files": _sums(run)})
    write_run(run, record)
    return record


def _sums(run: RunDirectory) -> dict[str, str]:
    """The sha256 of what is read again later; the model card is for people to edit, the picture to look at."""
    files = [run.recipe, run.metrics, run.predictions]
    student = checksums(run.student, leave_out=[MODEL_CARD])
    return {file.name: file_sha256(file) for file in files} | {
        f"{run.student.name}/{name}": digest for name, digest in student.items()
    }


def run_record(result: Result) -> RunRecord:
    """The content of `run.json`."""
    data, setting = result.data, result.setting
    evaluations = [EvaluationRecord.model_validate(row) for row in result.learnt.evaluations]
    # The best of those that looked at all rows: an accuracy on a sample is no match for one on all.
    best = max((e for e in evaluations if e.rows == len(data.validation.rows)), key=lambda e: e.accuracy)
    return RunRecord(
        task=result.recipe.task,
        classes=data.classes,
        train_rows=len(data.train.rows),
        validation_rows=len(data.validation.rows),
        majority_share=result.taught.verdict.majority_share,
        gate=GateRecord(**asdict(result.taught.verdict)),
        teacher=_teacher(result),
        student=_student(result),
        best=BestRecord(step=best.step, accuracy=best.accuracy),
        loss=LossRecord(**result.recipe.loss.model_dump()),
        retention=metrics.retention(result.learnt.final.scores, result.taught.scores),
        paired_difference=paired_difference(
            metrics.correct(result.learnt.final.logits_NC, result.labels_N),
            metrics.correct(result.teacher_NC, result.labels_N),
        ),
        evaluations=tuple(evaluations),
        doubts=_doubts(result),
        stages={name: StageRecord.of(setting.meter(name)) for name in STAGES},
        environment=Environment(
            device=str(setting.device),
            precision=str(setting.precision.dtype).removeprefix("torch."),
            precision_reason=setting.precision.reason,
            engine=result.learnt.engine,
            versions=versions(),
        ),
        fingerprints={
            "train": data.train.fingerprint,
            "labels": data.train.label_fingerprint,
            "validation": data.validation.fingerprint,
            "targets": result.taught.key,
            "student_base": result.student.source.fingerprint,
        },
        notes=_notes(result),
    )


def _doubts(result: Result) -> DoubtsRecord:
    reading = result.reading
    return DoubtsRecord(
        **asdict(result.data.doubts),
        teacher_truncated_texts=reading.teacher_truncated,
        student_truncated_texts=reading.student_truncated,
        same_tokens=reading.same_tokens,
    )


def _teacher(result: Result) -> TeacherRecord:
    recipe = result.recipe.teacher
    ways = [way for way in ("fine_tune", "adapter", "prompt") if getattr(recipe, way) is not None]
    return TeacherRecord(
        model=recipe.model,
        quantization=recipe.quantization,
        way=ways[0] if ways else "classifier",
        layers=result.taught.targets.layers,
        total_parameters=result.taught.targets.parameters,
        **asdict(result.taught.scores),
    )


def _student(result: Result) -> StudentRecord:
    student, final = result.student, result.learnt.final
    return StudentRecord(
        model=result.recipe.student.model,
        base=BASE_FOLDER if student.own_base else result.recipe.student.model,
        layers=student.base.config.num_hidden_layers,
        trainable_parameters=student.parameters.trainable,
        total_parameters=student.parameters.total,
        trainable_share=student.parameters.share,
        agreement=final.agreement,
        soft_loss=final.soft_loss,
        **asdict(final.scores),
    )


def _notes(result: Result) -> tuple[str, ...]:
    learnt, rows = result.learnt, len(result.data.validation.rows)
    notes = [*result.data.notes, *result.reading.notes]
    if learnt.sample_rows < rows:
        notes.append(
            f"evaluations before the last are on a fixed sample of {learnt.sample_rows} of the {rows} validation rows, "
            "the last is on all"
        )
    return tuple(notes)


def _predictions(result: Result) -> str:
    """Teacher's and student's logits of each validation row, a JSON line each."""
    lines = [
        {
            "id": row.id,
            "text": row.text,
            "label": row.label,
            "teacher_logits": teacher,
            "student_logits": student,
        }
        for row, teacher, student in zip(
            result.data.validation.rows,
            result.teacher_NC.tolist(),
            result.learnt.final.logits_NC.tolist(),
            strict=True,
        )
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
