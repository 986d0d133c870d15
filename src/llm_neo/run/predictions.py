"""What a run answered on its validation rows, `predictions.jsonl`, and whether a model still answers so.

Shapes: N validation rows, C classes.
"""

import json
from dataclasses import dataclass

import numpy as np
import torch

from llm_neo.errors import InputError
from llm_neo.run.directory import RunDirectory
from llm_neo.run.record import RunRecord, require_files

ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""How far rounding alone may move a logit, relative to the largest one (at least 1).

Measured on 872 rows with 20 layers of SmolLM2-135M: a merge moves logits by 2e-6 of the largest one in float32 and by
0.03 in bfloat16, whose weights and activations have 8 bits; the loss of the adapter moves them by 0.4.
"""


@dataclass(frozen=True)
class Predictions:
    """The student's answers at the end of a run.

    Attributes:
        ids: row ids.
        texts: one or two strings each.
        student_NC: logits, float32.
    """

    ids: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    student_NC: torch.Tensor


@dataclass(frozen=True)
class Comparison:
    """Answers held against those of the run.

    Attributes:
        rows: N.
        difference: the largest difference of a logit.
        row: the id of the row that has it.
        tolerance: what rounding explains.
        changed: rows with another class, though the run's best logit is ahead by more than the tolerance.
    """

    rows: int
    difference: float
    row: str
    tolerance: float
    changed: int

    @property
    def same(self) -> bool:
        """Whether rounding explains every difference."""
        return self.difference <= self.tolerance and self.changed == 0


def read_predictions(run: RunDirectory, record: RunRecord, limit: int) -> Predictions:
    """The run's `predictions.jsonl`.

    Args:
        run: its directory.
        record: its `run.json`.
        limit: at most so many rows, spread evenly, since files are often sorted by label.

    Raises:
        InputError: the file is missing, damaged, or not of this run.
    """
    require_files(run, record, run.predictions.name)
    try:
        with run.predictions.open(encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        ids = [str(line["id"]) for line in lines]
        texts = [_strings(line["text"]) for line in lines]
        logits_NC = torch.tensor([line["student_logits"] for line in lines], dtype=torch.float32)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run.predictions} is missing or damaged ({error}); distil again") from error
    expected = (record.validation_rows, len(record.classes))
    if tuple(logits_NC.shape) != expected or not logits_NC.isfinite().all():
        raise InputError(
            f"{run.predictions} must hold {expected[0]} rows of {expected[1]} finite student_logits, as run.json says, "
            "but does not; it was changed since: distil again"
        )
    chosen = np.unique(np.linspace(0, len(ids) - 1, min(limit, len(ids))).round().astype(np.int64)).tolist()
    return Predictions(tuple(ids[row] for row in chosen), tuple(texts[row] for row in chosen), logits_NC[chosen])


def _strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(part, str) for part in value):
        raise TypeError(f"text must be a list of strings, got {value!r:.60}")
    return tuple(value)


def compare(answers_NC: torch.Tensor, recorded: Predictions, *dtypes: torch.dtype) -> Comparison:
    """Whether a model answers as the run did, up to rounding.

    Args:
        answers_NC: its logits of the recorded rows; NaN differs from everything.
        recorded: the run's.
        dtypes: of the arithmetic that made the one and the other.
    """
    scale = max(1.0, float(recorded.student_NC.abs().max()))
    tolerance = scale * max(ROUNDING[dtype] for dtype in dtypes)
    difference_N = (answers_NC - recorded.student_NC).abs().nan_to_num(torch.inf).amax(dim=1)
    best_N2 = recorded.student_NC.topk(2, dim=1).values
    clear_N = best_N2[:, 0] - best_N2[:, 1] > tolerance
    changed_N = clear_N & (answers_NC.argmax(dim=1) != recorded.student_NC.argmax(dim=1))
    return Comparison(
        rows=len(recorded.ids),
        difference=float(difference_N.max()),
        row=recorded.ids[int(difference_N.argmax())],
        tolerance=tolerance,
        changed=int(changed_N.sum()),
    )
