"""`run.json`, the measured result of a finished run: typed, versioned, written last.

Accuracies, shares and intervals are fractions of 1; losses are in nats; sizes in bytes. Nothing in it comes from the
environment variables or names the host, so that it can be shown to anyone.
"""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm_neo.assets.seals import SEAL, changed_file, is_sealed, sealed
from llm_neo.errors import InputError
from llm_neo.files import write_text_atomically
from llm_neo.intervals import PairedDifference
from llm_neo.meter import StageMeter
from llm_neo.run.directory import RunDirectory

SCHEMA_VERSION = 1

Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Nats = Annotated[float, Field(allow_inf_nan=False)]
Limits = tuple[Fraction, Fraction]


class Record(BaseModel):
    """A part of `run.json`: immutable; a key that this version does not know is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class GateRecord(Record):
    """The teacher gate's verdict; see `metrics.GateVerdict`."""

    passed: bool
    rule: str
    majority_share: Fraction
    fresh_head: bool


class ScoredModel(Record):
    """A model and its figures on all validation rows; see `metrics.Scores`."""

    model: str = Field(description="as the recipe names it")
    rows: Count
    accuracy: Fraction
    accuracy_interval: Limits = Field(description="95 %, Wilson")
    f1: Fraction
    precision: Fraction
    recall: Fraction
    loss: Nats
    calibration_error: Fraction
    layers: Count | None = None
    total_parameters: Count | None = Field(None, description="each weight once")


class TeacherRecord(ScoredModel):
    """The teacher as it was measured and taught, that is, quantised."""

    quantization: str
    way: str = Field("classifier", description="fine_tune, adapter, prompt, or classifier: fine-tuned already")


class StudentRecord(ScoredModel):
    """The student after the last step."""

    base: str = Field(description='what its adapter belongs to: "base" = the folder student/base, or a hub id')
    trainable_parameters: Count
    total_parameters: Count
    trainable_share: Fraction
    agreement: Fraction = Field(description="share of rows where student and teacher predict the same class")
    soft_loss: Nats


class BestRecord(Record):
    """The evaluation with the highest accuracy; chosen on these rows, so no estimate of anything."""

    step: Count
    accuracy: Fraction


class LossRecord(Record):
    """What was minimised: w * hard + (1 - w) * soft."""

    hard_label_weight: Fraction
    temperature: float


class EvaluationRecord(Record):
    """One line of the evaluation table."""

    step: Count
    training_loss: Nats = Field(description="mean since the evaluation before")
    epoch: float = Field(description="epochs done")
    validation_loss: Nats = Field(description="cross-entropy with the labels")
    accuracy: Fraction
    f1: Fraction
    precision: Fraction
    recall: Fraction
    rows: Count | None = Field(None, description="validation rows looked at; null = all")
    accuracy_interval: Limits | None = None
    agreement: Fraction | None = None
    soft_loss: Nats | None = None
    calibration_error: Fraction | None = None


class DoubtsRecord(Record):
    """What may make the figures flatter, or the training worse, than the rows promise; also said in `notes`."""

    contradicting_train_texts: Count = Field(description="distinct texts with different labels")
    contradicting_validation_texts: Count
    shared_texts: Count = Field(description="distinct validation texts that are training texts too")
    teacher_truncated_texts: Count = Field(description="of training and validation, longer than the limit")
    student_truncated_texts: Count
    same_tokens: bool = Field(description="teacher and student read the same tokens")


class StageRecord(Record):
    """What a stage cost; see `StageMeter`."""

    seconds: float
    tokens: Count
    peak_device_bytes: Count
    peak_host_bytes: Count

    @classmethod
    def of(cls, meter: StageMeter) -> "StageRecord":
        """The meter's figures."""
        return cls.model_validate(meter, from_attributes=True)


class Environment(Record):
    """What the run ran on."""

    device: str
    precision: str
    precision_reason: str
    engine: str
    versions: dict[str, str] = Field(description="see runtime.versions")


class RunRecord(Record):
    """The whole of `run.json`."""

    schema_version: Literal[1] = 1
    task: str
    classes: tuple[str, ...]
    train_rows: Count
    validation_rows: Count
    majority_share: Fraction
    gate: GateRecord
    teacher: TeacherRecord
    student: StudentRecord
    best: BestRecord
    loss: LossRecord
    retention: float | None = Field(description="student / teacher accuracy; null = the teacher is never right")
    paired_difference: PairedDifference
    evaluations: tuple[EvaluationRecord, ...] = Field(min_length=1, description="the last is on all rows")
    doubts: DoubtsRecord | None = Field(None, description="null = a run of an earlier version")
    stages: dict[str, StageRecord] = Field(description="data, teacher, targets, train, evaluate")
    environment: Environment
    fingerprints: dict[str, str] = Field({}, description="of recipe, data, teacher and targets")
    notes: tuple[str, ...] = Field((), description="what a reader must know besides, one sentence each")
    files: dict[str, str] = Field(
        default={}, description="sha256 of the run's other files, by path in the run directory"
    )


def write_run(run: RunDirectory, record: RunRecord) -> None:
    """Write `run.json` with its own sha256 at the end.

    Raises:
        InputError: the folder cannot be written.
        ResourceError: the disk is full.
    """
    document = sealed(record.model_dump(mode="json"))
    write_text_atomically(run.run_json, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def read_run(path: str | Path) -> RunRecord:
    """The result of a finished run.

    Args:
        path: the run directory.

    Raises:
        InputError: no such folder, no finished run in it, or a `run.json` that is damaged or too new.
    """
    run = RunDirectory(Path(path).expanduser())
    if not run.path.is_dir():
        raise InputError(f"{run.path} is not a folder; name the output of a run")
    try:
        text = run.run_json.read_text(encoding="utf-8")
    except FileNotFoundError:
        remedy = f"; go on with it by `llm-neo distill --resume {run.path}`" if run.recipe.is_file() else ""
        raise InputError(f"{run.path} is not a finished run: it has no run.json{remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{run.run_json} cannot be read: {error}; run the recipe again") from error
    return _parse(text, run.run_json)


def require_files(run: RunDirectory, record: RunRecord, *beginnings: str) -> None:
    """Refuse files of a finished run that are gone or not as the run wrote them.

    Args:
        run: its directory.
        record: its `run.json`.
        beginnings: of the paths to check, such as `student/`.

    Raises:
        InputError: one of them; it is named.
    """
    named = {name: digest for name, digest in record.files.items() if name.startswith(beginnings)}
    changed = changed_file(run.path, named)
    if changed is not None:
        raise InputError(f"{run.path / changed} is missing or not as the run wrote it; restore it or distil again")


def _parse(text: str, path: Path) -> RunRecord:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; run the recipe again") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputError(
            f"{path} was written by a newer LLM-Neo (schema_version {version}, this one reads up to "
            f"{SCHEMA_VERSION}); update llm-neo"
        )
    # A record of before there were seals has neither of the two.
    if isinstance(document, dict) and (SEAL in document or document.get("files")) and not is_sealed(document):
        raise InputError(f"{path} is not as the run wrote it (its {SEAL} differs); restore it or run the recipe again")
    try:
        return RunRecord.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise InputError(
            f"{path} is damaged: {place}: {first['msg']} ({error.error_count()} faults in all); run the recipe again"
        ) from error
