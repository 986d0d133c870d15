"""A finished run's student at work: load it as peft and transformers do, measure it, let it classify.

Shapes: N texts, C classes.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llm_neo import adapters, metrics, models
from llm_neo.batching import encode
from llm_neo.data import Split, read_rows
from llm_neo.errors import InputError
from llm_neo.evaluate import classifier_forward, score_rows
from llm_neo.models import Placement
from llm_neo.progress import Progress, SilentProgress
from llm_neo.recipe import LabelledSource, Recipe, load_recipe
from llm_neo.run_directory import RunDirectory
from llm_neo.run_record import RunRecord, read_run
from llm_neo.runtime import select_device, select_precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BASE_FOLDER = "base"
"""Where in the student's folder its own base is, if it has one."""
PREDICTED_AT_ONCE = 4096
"""Texts that `predict_run` holds at a time: files may be longer than the memory."""


@dataclass(frozen=True)
class LoadedRun:
    """The student of a finished run.

    Attributes:
        run: its directory.
        record: its `run.json`.
        recipe: its resolved recipe.
        folder: what the student was loaded from.
        model: in evaluation mode.
        tokenizer: saved with it.
        device: where it is.
        dtype: of its base.
    """

    run: RunDirectory
    record: RunRecord
    recipe: Recipe
    folder: Path
    model: Any
    tokenizer: "PreTrainedTokenizerBase"
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class Prediction:
    """What the student says of one text.

    Attributes:
        label: the likeliest class.
        scores: the probability of each class; they sum to 1.
    """

    label: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Recorded:
    """The run's own answers on validation rows.

    Attributes:
        ids: row ids.
        texts: one or two strings each.
        student_NC: the student's logits at the end of the run, float32.
    """

    ids: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    student_NC: torch.Tensor

    @classmethod
    def read(cls, run: RunDirectory, limit: int) -> "Recorded":
        """The first `limit` rows of the run's `predictions.jsonl`.

        Raises:
            InputError: the file is missing or damaged.
        """
        try:
            with run.predictions.open(encoding="utf-8") as file:
                lines = [json.loads(line) for line in islice(file, limit)]
            logits = torch.tensor([line["student_logits"] for line in lines], dtype=torch.float32)
            ids, texts = tuple(line["id"] for line in lines), tuple(tuple(line["text"]) for line in lines)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{run.predictions} is missing or damaged ({error}); distil again") from error
        return cls(ids, texts, logits)


def load_run(
    path: Path, *, student: Path | None = None, device: str = "auto", dtype: torch.dtype | None = None
) -> LoadedRun:
    """Load a finished run's student.

    Args:
        path: the run directory.
        student: load this folder instead of the run's own.
        device: "auto", "cpu" or "cuda"; a run made on a GPU may be used without one.
        dtype: of the base; None = as the run's precision says for this device.

    Raises:
        InputError: no finished run, or a student that is not whole.
    """
    run = RunDirectory(path)
    record = read_run(path)
    recipe = load_recipe(str(run.recipe))
    folder = student or run.student
    chosen = select_device(device)
    if dtype is None:
        dtype = select_precision(recipe.runtime.precision, chosen).dtype
    limit, trusted = recipe.data.max_length_tokens, recipe.runtime.trust_remote_code
    base, spec = _base_of(folder, recipe)
    loaded = models.load_classifier(
        base,
        spec,
        record.classes,
        Placement(chosen, dtype),
        max_length_tokens=limit,
        seed=recipe.train.seed,
        trust_remote_code=trusted,
    )
    model: Any = loaded.model
    if (folder / adapters.CONFIG_FILE).is_file():
        model = adapters.load_adapter(loaded.model, folder)
    elif loaded.fresh_head:
        raise InputError(f"{folder} holds no head for the classes; it was not written whole: distil again")
    config = models.load_config(base, spec, trusted)
    tokenizer = models.load_tokenizer(folder, str(folder), config, limit, trusted)
    return LoadedRun(run, record, recipe, folder, model, tokenizer, chosen, dtype)


def _base_of(folder: Path, recipe: Recipe) -> tuple[Path, str]:
    """The folder of the student's base and what to call it."""
    if not (folder / adapters.CONFIG_FILE).is_file():
        return folder, str(folder)
    if (folder / BASE_FOLDER).is_dir():
        return folder / BASE_FOLDER, str(folder / BASE_FOLDER)
    from llm_neo.assets import resolve_model

    return resolve_model(recipe.student.model).folder, recipe.student.model


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
    loaded = load_run(path)
    progress = progress or SilentProgress()
    split = read_rows(_like_validation(loaded.recipe, data_file), loaded.record.classes, "data", progress)
    labels_N = torch.tensor([row.label for row in split.rows])
    logits_NC = _logits(loaded, split, progress)
    classes = len(loaded.record.classes)
    scores = metrics.score_predictions(logits_NC, labels_N, classes)
    return {
        **asdict(scores),
        "accuracy_interval": list(scores.accuracy_interval),
        "majority_share": metrics.majority_share(labels_N, classes),
        "data": data_file,
    }


def _like_validation(recipe: Recipe, source: str) -> LabelledSource:
    """The same columns in another place; a file with a header line of its own keeps that."""
    described = recipe.data.validation if isinstance(recipe.data.validation, LabelledSource) else recipe.data.train
    return described.model_copy(update={"source": source, "limit": None})


def _logits(loaded: LoadedRun, split: Split, progress: Progress) -> torch.Tensor:
    ids, texts = [row.id for row in split.rows], [row.text for row in split.rows]
    rows = encode(loaded.tokenizer, ids, texts, loaded.recipe.data.max_length_tokens)
    return score_rows(classifier_forward(loaded.model), rows, loaded.device, progress, label="scoring")


def predict_run(
    path: Path, texts: Iterable[tuple[str, ...]], progress: Progress | None = None
) -> Iterator[Prediction]:
    """Classify any number of texts, a few thousand at a time.

    Args:
        path: the run directory.
        texts: one string each, or two where the run is about pairs; they are stripped.
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
        rows = encode(
            loaded.tokenizer, [f"text {number}" for number, _ in chunk], stripped, loaded.recipe.data.max_length_tokens
        )
        forward = classifier_forward(loaded.model)
        logits_NC = score_rows(forward, rows, loaded.device, progress, label="predicting")
        for row, winner in zip(logits_NC.softmax(dim=1).tolist(), logits_NC.argmax(dim=1).tolist(), strict=True):
            yield Prediction(classes[winner], dict(zip(classes, row, strict=True)))


def _checked(number: int, text: tuple[str, ...], parts: int) -> tuple[str, ...]:
    stripped = tuple(part.strip() for part in text)
    if len(stripped) != parts or not all(stripped):
        wanted = "one text that is not empty" if parts == 1 else "two texts that are not empty, with a TAB between them"
        raise InputError(f"text {number}: this run classifies {wanted}, got {text!r:.80}")
    return stripped
