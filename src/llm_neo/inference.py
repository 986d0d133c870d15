"""A finished run's student at work: load it as peft and transformers do, measure it, let it classify.

Shapes: N texts, C classes.
"""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from llm_neo import metrics
from llm_neo.assets import resolve_file
from llm_neo.batching import encode
from llm_neo.data import Split, read_rows
from llm_neo.data.notes import plural
from llm_neo.data.table import is_text
from llm_neo.errors import InputError
from llm_neo.evaluate import classifier_forward, score_rows
from llm_neo.models import adapters, load
from llm_neo.models.load import Placement
from llm_neo.progress import Progress, SilentProgress
from llm_neo.recipe import LabelledSource, Recipe, ScoreLabel, load_recipe
from llm_neo.run.directory import RunDirectory
from llm_neo.run.record import RunRecord, read_run, require_files
from llm_neo.runtime import select_device, select_precision
from llm_neo.student_base import base_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREDICTED_AT_ONCE = 4096
"""Texts that `predict_run` holds at a time: files may be longer than the memory."""
_HEADER_CHARACTERS = 100_000


@dataclass(frozen=True)
class LoadedRun:
    """The student of a finished run.

    Attributes:
        run: its directory.
        record: its `run.json`.
        recipe: its resolved recipe.
        model: in evaluation mode.
        tokenizer: saved with it.
        device: where it is.
        dtype: of its base.
    """

    run: RunDirectory
    record: RunRecord
    recipe: Recipe
    model: Any
    tokenizer: "PreTrainedTokenizerBase"
    device: torch.device
    dtype: torch.dtype

    def logits(
        self, ids: list[str], texts: list[tuple[str, ...]], progress: Progress | None = None, label: str = "scoring"
    ) -> torch.Tensor:
        """Its logits of N texts, (N, C) float32 on the CPU, computed as during the run.

        Args:
            ids: what errors call each text.
            texts: one or two strings each.
            progress: shows a bar.
            label: the bar's name.
        """
        limit = self.recipe.data.max_length_tokens
        rows = encode(self.tokenizer, ids, texts, limit)
        if rows.truncated and progress is not None:
            longer = f"longer than data.max_length_tokens = {limit} and lose their end"
            progress.say(f"of {plural(len(rows), 'text')} {rows.truncated:,} are {longer}")
        return score_rows(classifier_forward(self.model), rows, self.device, progress, label=label)


@dataclass(frozen=True)
class Prediction:
    """What the student says of one text.

    Attributes:
        label: the likeliest class.
        scores: the probability of each class; they sum to 1.
    """

    label: str
    scores: dict[str, float]


def load_run(
    path: Path,
    *,
    student: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    dtype: torch.dtype | None = None,
) -> LoadedRun:
    """Load a finished run's student.

    Args:
        path: the run directory.
        student: load this folder instead of the run's own.
        device: None = `select_student_device`.
        dtype: of the base; None = float32 where all weights were trained, else as the run's precision says for the
            device.

    Raises:
        InputError: no finished run, or a student that is not whole.
    """
    run = RunDirectory(Path(path).expanduser())
    record = read_run(run.path)
    folder = student or run.student
    if not folder.is_dir():
        raise InputError(f"{folder} is not there, so there is no student to load; distil again")
    require_files(run, record, run.recipe.name, f"{run.student.name}/")
    recipe = load_recipe(str(run.recipe))
    where = select_student_device(recipe) if device is None else select_device(device)
    if dtype is None:
        adapted = recipe.student.lora is not None
        dtype = select_precision(recipe.runtime.precision, where).dtype if adapted else torch.float32
    model, tokenizer = _load_student(folder, recipe, record, Placement(where, dtype))
    return LoadedRun(run, record, recipe, model, tokenizer, where, dtype)


def select_student_device(recipe: Recipe) -> torch.device:
    """Where a run's student works: on the CPU if the recipe says so, else on a GPU where there is one."""
    return select_device("cpu" if recipe.runtime.device == "cpu" else "auto")


def _load_student(
    folder: Path, recipe: Recipe, record: RunRecord, where: Placement
) -> tuple[Any, "PreTrainedTokenizerBase"]:
    limit, trusted = recipe.data.max_length_tokens, recipe.runtime.trust_remote_code
    base, spec = base_of(folder, recipe, record.fingerprints.get("student_base"))
    loaded = load.load_classifier(
        base,
        spec,
        record.classes,
        where,
        max_length_tokens=limit,
        seed=recipe.train.seed,
        trust_remote_code=trusted,
    )
    model: Any = loaded.model
    if recipe.student.lora is not None:
        model = adapters.load_adapter(loaded.model, folder)
    elif loaded.fresh_head:
        raise InputError(f"{folder} holds no head for the classes; it was not written whole: distil again")
    return model, load.load_tokenizer(folder, str(folder), loaded.model.config, limit, trusted)


def evaluate_run(path: Path, data_file: str, progress: Progress | None = None) -> dict[str, Any]:
    """The student's figures on labelled rows of another file, read like the recipe's validation rows.

    Args:
        path: the run directory.
        data_file: any data source of a recipe, with the columns that the run was made with.
        progress: shows the bar.

    Returns:
        `metrics.Scores` by name, with `majority_share` and `data`.

    Raises:
        InputError: no finished run, or rows that do not fit it.
    """
    progress = progress or SilentProgress()
    # The rows first: reading them takes a moment and their faults are commoner than a model's.
    record, recipe = read_run(path), load_recipe(str(RunDirectory(Path(path).expanduser()).recipe))
    split = read_rows(_like_validation(recipe, data_file), record.classes, "data", progress)
    labels_N = torch.tensor([row.label for row in split.rows])
    logits_NC = _logits(load_run(path), split, progress)
    classes = len(record.classes)
    scores = metrics.score_predictions(logits_NC, labels_N, classes)
    return {
        **asdict(scores),
        "accuracy_interval": list(scores.accuracy_interval),
        "majority_share": metrics.majority_share(labels_N, classes),
        "data": data_file,
    }


def _logits(loaded: LoadedRun, split: Split, progress: Progress) -> torch.Tensor:
    return loaded.logits([row.id for row in split.rows], [row.text for row in split.rows], progress)


def _like_validation(recipe: Recipe, source: str) -> LabelledSource:
    """The same columns in another place, all rows of it."""
    described = recipe.data.validation if isinstance(recipe.data.validation, LabelledSource) else recipe.data.train
    columns = None if described.columns is None or _names_its_columns(source, described) else described.columns
    return described.model_copy(update={"source": source, "limit": None, "columns": columns})


def _names_its_columns(source: str, described: LabelledSource) -> bool:
    """Whether the file needs no names from the recipe, whose own file had no header line."""
    spec = source.partition("#")[0].lower()
    if not spec.endswith((".tsv", ".txt", ".csv")):
        return True
    with resolve_file(source).open(encoding="utf-8-sig", errors="replace") as file:
        line = file.readline(_HEADER_CHARACTERS)
    cells = next(csv.reader([line]), []) if spec.endswith(".csv") else line.split("\t")
    texts = (described.text,) if isinstance(described.text, str) else described.text
    label = described.label.column if isinstance(described.label, ScoreLabel) else described.label
    return {*texts, label} <= {cell.strip() for cell in cells}


def predict_run(
    path: Path, texts: Iterable[str | tuple[str, ...]], progress: Progress | None = None
) -> Iterator[Prediction]:
    """Classify any number of texts, a few thousand at a time.

    Args:
        path: the run directory.
        texts: one string each, or a tuple of two where the run is about pairs; they are stripped.
        progress: shows the bars.

    Yields:
        A prediction per text, in order.

    Raises:
        InputError: no finished run, an empty text, or another number of parts than the run has.
    """
    loaded = load_run(path)
    classes = loaded.record.classes
    parts = 2 if isinstance(loaded.recipe.data.train.text, tuple) else 1
    numbered = iter(enumerate(texts, start=1))
    while chunk := list(islice(numbered, PREDICTED_AT_ONCE)):
        stripped = [_checked(number, text, parts) for number, text in chunk]
        logits_NC = loaded.logits([f"text {number}" for number, _ in chunk], stripped, progress, "predicting")
        for row, winner in zip(logits_NC.softmax(dim=1).tolist(), logits_NC.argmax(dim=1).tolist(), strict=True):
            yield Prediction(classes[winner], dict(zip(classes, row, strict=True)))


def _checked(number: int, text: str | tuple[str, ...], parts: int) -> tuple[str, ...]:
    stripped = tuple(part.strip() for part in ((text,) if isinstance(text, str) else text))
    if len(stripped) != parts or not all(part and is_text(part) for part in stripped):
        wanted = "one text that is not empty" if parts == 1 else "two texts that are not empty, with a TAB between them"
        raise InputError(f"text {number}: this run classifies {wanted}, got {text!r:.80}")
    return stripped
