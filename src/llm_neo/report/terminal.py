"""The end of a run on the terminal: teacher beside student, how it got there, what it cost, what to type next."""

from collections.abc import Callable, Iterable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from llm_neo.intervals import retention_sentence
from llm_neo.printing import printable
from llm_neo.report.names import public_name
from llm_neo.run.directory import RunDirectory
from llm_neo.run.record import EvaluationRecord, RunRecord, ScoredModel, StageRecord

if TYPE_CHECKING:
    from rich.console import JustifyMethod, RenderableType
    from rich.table import Table

EVALUATIONS_SHOWN = 20
_GIB = 2**30

_COLUMNS: dict[str, Callable[[EvaluationRecord], str]] = {
    "Step": lambda row: str(row.step),
    "Training Loss": lambda row: f"{row.training_loss:.4f}",
    "Progress (epoch %)": lambda row: f"{row.epoch:.4f}",
    "Validation Loss": lambda row: f"{row.validation_loss:.4f}",
    "Accuracy": lambda row: f"{row.accuracy:.4f}",
    "F1": lambda row: f"{row.f1:.4f}",
    "Precision": lambda row: f"{row.precision:.4f}",
    "Recall": lambda row: f"{row.recall:.4f}",
}
"""The seed's evaluation table, column for column."""


def summary(record: RunRecord, path: str | Path) -> "RenderableType":
    """What a finished run shows on the terminal; it reads well from 80 columns on.

    Args:
        record: the run's result.
        path: the run directory, as the user would type it.

    Returns:
        Something that a rich Console prints.
    """
    from rich.console import Group
    from rich.text import Text

    lines: list[RenderableType] = [
        _models(record),
        Text(_share(record)),
        Text(retention_sentence(record.retention, record.paired_difference), style="bold"),
    ]
    if not record.gate.passed:
        lines.append(Text(f"The teacher failed its gate: {record.gate.rule}", style="bold red"))
    lines += [Text(printable(f"Note: {note}")) for note in record.notes]
    lines += [Text(), _evaluations(record), Text(_evaluation_notes(record), style="dim")]
    lines += [Text(), _stages(record), Text(f"Precision {record.environment.precision_reason}.", style="dim")]
    return Group(*lines, Text(), Text(_next_steps(Path(path))))


def _table(title: str, *columns: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", padding=(0, 1, 0, 0))
    for position, column in enumerate(columns):
        longest_word = max(map(len, column.split()), default=0)
        justify: JustifyMethod = "left" if position == 0 else "right"
        table.add_column(column, justify=justify, min_width=longest_word, overflow="fold")
    return table


def _add_row(table: "Table", cells: Iterable[str], style: str | None = None) -> None:
    """Plain text: a bracket in a class or a model name is no markup."""
    from rich.text import Text

    table.add_row(*(Text(printable(cell)) for cell in cells), style=style)


def _models(record: RunRecord) -> "Table":
    teacher, student, precision = record.teacher, record.student, record.environment.precision
    positive = f" of {record.classes[1]!r}" if len(record.classes) == 2 else ", macro average"
    table = _table("Result after the last step", "", "teacher", "student")
    rows: list[tuple[str, str, str]] = [
        ("model", public_name(teacher.model), public_name(student.model)),
        ("frozen weights", precision if teacher.quantization == "none" else teacher.quantization, precision),
        ("layers, parameters", _size(teacher), _size(student)),
        (f"accuracy, n = {record.validation_rows}", f"{teacher.accuracy:.4f}", f"{student.accuracy:.4f}"),
        ("  its 95 % interval", _interval(teacher), _interval(student)),
        ("retention", "", _retention(record.retention)),
        (f"F1{positive}", f"{teacher.f1:.4f}", f"{student.f1:.4f}"),
        ("precision", f"{teacher.precision:.4f}", f"{student.precision:.4f}"),
        ("recall", f"{teacher.recall:.4f}", f"{student.recall:.4f}"),
        ("validation loss, nats", f"{teacher.loss:.4f}", f"{student.loss:.4f}"),
        ("calibration error", f"{teacher.calibration_error:.4f}", f"{student.calibration_error:.4f}"),
        ("agreement with the teacher", "", f"{student.agreement:.4f}"),
        ("soft loss, nats", "", f"{student.soft_loss:.4f}"),
    ]
    for row in rows:
        _add_row(table, row)
    return table


def _size(model: ScoredModel) -> str:
    layers = "" if model.layers is None else f"{model.layers}, "
    return layers + ("?" if model.total_parameters is None else f"{model.total_parameters:,}")


def _interval(model: ScoredModel) -> str:
    low, high = model.accuracy_interval
    return f"{low:.4f} to {high:.4f}"


def _retention(ratio: float | None) -> str:
    """Student / teacher accuracy; beyond the teacher there is nothing left to retain."""
    if ratio is None:
        return "not defined"
    return f"{ratio:.4f}" if ratio <= 1 else "1, no loss"


def _share(record: RunRecord) -> str:
    student = record.student
    return (
        f"Trained: {student.trainable_parameters:,} of {student.total_parameters:,} parameters "
        f"= {100 * student.trainable_share:.4f} %. Always answering the commonest class: {record.majority_share:.4f}."
    )


def _evaluations(record: RunRecord) -> "Table":
    table = _table("Evaluations of the student", *_COLUMNS)
    for row in record.evaluations[-EVALUATIONS_SHOWN:]:
        _add_row(table, (show(row) for show in _COLUMNS.values()))
    return table


def _evaluation_notes(record: RunRecord) -> str:
    notes = ["Progress counts epochs: 0.25 is a quarter of the first."]
    hidden = len(record.evaluations) - EVALUATIONS_SHOWN
    if hidden > 0:
        notes.append(f"{hidden} earlier evaluations are in run.json.")
    notes.append(
        f"Best accuracy {record.best.accuracy:.4f} at step {record.best.step}; the student is the last step's."
    )
    return " ".join(notes)


def _stages(record: RunRecord) -> "Table":
    on_device = any(stage.peak_device_bytes for stage in record.stages.values())
    device = ["peak device GiB"] if on_device else []
    table = _table("Stages", "stage", "seconds", "tokens", "tokens/s", *device, "peak host GiB")
    for name, stage in record.stages.items():
        _add_row(table, (name, f"{stage.seconds:.1f}", *_tokens(stage), *_peaks(stage, on_device)))
    total = sum(stage.seconds for stage in record.stages.values())
    _add_row(table, ("together", f"{total:.1f}"), style="bold")
    return table


def _tokens(stage: StageRecord) -> tuple[str, str]:
    if stage.tokens == 0:
        return "", ""
    return f"{stage.tokens:,}", f"{stage.tokens / stage.seconds:,.0f}" if stage.seconds > 0 else ""


def _peaks(stage: StageRecord, on_device: bool) -> list[str]:
    host = f"{stage.peak_host_bytes / _GIB:.2f}"
    return [f"{stage.peak_device_bytes / _GIB:.2f}", host] if on_device else [host]


def _next_steps(path: Path) -> str:
    run = RunDirectory(path)
    name = quote(str(path))
    return "\n".join(
        [
            f"The student is in {run.student}, its curves in {run.curves}. Next:",
            f"  llm-neo predict {name} 'a text of yours'",
            f"  llm-neo evaluate {name} --data your-rows.tsv",
            f"  llm-neo export {name} --to merged",
        ]
    )
