"""The student as files that the rest of the Hugging Face world loads: adapter, cut base, merged model."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from llm_neo import adapters, models
from llm_neo.assets.cache import staged_folder
from llm_neo.batching import encode
from llm_neo.errors import InputError, LlmNeoError
from llm_neo.evaluate import classifier_forward, score_rows
from llm_neo.inference import BASE_FOLDER, LoadedRun, Recorded, load_run
from llm_neo.models import Placement, quiet
from llm_neo.progress import Progress
from llm_neo.recipe import Recipe
from llm_neo.student import select_layers
from llm_neo.student_stage import Student

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FLOAT32_TOLERANCE, BFLOAT16_TOLERANCE = 1e-3, 0.15
"""Largest difference of a logit that a merge may make: rounding of the products, and of the weights too."""
CHECKED_ROWS = 512


def save_student(student: Student, recipe: Recipe, folder: Path) -> None:
    """Write what was trained, its tokenizer and, where nobody else has it, its base.

    A cut or converted base lies in `folder/base` and the adapter names it by that relative path, so that the folder
    works when it is copied elsewhere.

    Args:
        student: trained.
        recipe: the run's.
        folder: is made.
    """
    if recipe.student.lora is None:
        with quiet():
            student.base.save_pretrained(folder)
        student.tokenizer.save_pretrained(folder)
        return
    named = BASE_FOLDER if student.own_base else student.source.hub_id or str(student.source.folder)
    adapters.save_adapter(student.model, folder, named, None if student.own_base else student.source.commit)  # type: ignore[arg-type]
    student.tokenizer.save_pretrained(folder)
    if student.own_base:
        _save_base(student, recipe, folder / BASE_FOLDER)


def _save_base(student: Student, recipe: Recipe, folder: Path) -> None:
    """The pretrained weights that the adapter stands on, in the dtype that they came in."""
    source = student.source
    config = models.load_config(source.folder, source.spec, recipe.runtime.trust_remote_code)
    stored = getattr(config, "dtype", None)
    where = Placement(torch.device("cpu"), stored if isinstance(stored, torch.dtype) else torch.float32)
    pristine = models.load_classifier(
        source.folder,
        source.spec,
        list(student.base.config.id2label.values()),
        where,
        max_length_tokens=recipe.data.max_length_tokens,
        seed=recipe.train.seed,
        trust_remote_code=recipe.runtime.trust_remote_code,
    )
    select_layers(pristine.model, recipe.student.layers)
    pristine.model.to(where.dtype)
    with quiet():
        pristine.model.save_pretrained(folder)
    pristine.tokenizer.save_pretrained(folder)


def export_run(
    run: Path, kind: Literal["adapter", "merged"], progress: Progress, output: Path | None = None
) -> Path:
    """Write the run's student in another form and check it against the run's own logits.

    Args:
        run: a finished run directory.
        kind: "adapter" = the folder as it is; "merged" = one model without adapters.
        progress: is told of the stages.
        output: is made; None = `export/KIND` in the run.

    Returns:
        The folder.

    Raises:
        InputError: no finished run, or an output that is not empty.
        LlmNeoError: what was written does not answer like the run.
    """
    target = output or run / "export" / kind
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists already; remove it or name another folder with --output")
    progress.stage("export")
    loaded = load_run(run)
    if target.is_dir():
        target.rmdir()
    with staged_folder(target) as stage:
        if kind == "adapter":
            shutil.copytree(loaded.folder, stage, dirs_exist_ok=True)
            difference = check(load_run(run, student=stage), progress)
        else:
            dtype = merge(loaded, stage)
            difference = check(_load_merged(loaded, stage, dtype), progress)
    progress.say(f"checked: the largest difference from the run's logits is {difference:.2g}")
    return target


def merge(loaded: LoadedRun, folder: Path) -> torch.dtype:
    """Add the adapters into the base in float32 and write one classifier in the run's precision.

    Args:
        loaded: the run's student.
        folder: is made.

    Returns:
        The dtype of the written weights.
    """
    precise = load_run(loaded.run.path, student=loaded.folder, device="cpu", dtype=torch.float32)
    base = precise.model
    if hasattr(base, "merge_and_unload"):
        base = base.merge_and_unload()
    dtype = loaded.dtype
    base.to(dtype)
    base.config.dtype = dtype
    with quiet():
        base.save_pretrained(folder)
    precise.tokenizer.save_pretrained(folder)
    return dtype


def _load_merged(loaded: LoadedRun, folder: Path, dtype: torch.dtype) -> LoadedRun:
    """The merged folder by transformers alone, as any user would load it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with quiet():
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return replace(loaded, model=model.to(loaded.device).eval(), tokenizer=tokenizer)


def check(loaded: LoadedRun, progress: Progress) -> float:
    """Hold a model's answers against the logits that the run recorded.

    Returns:
        The largest difference of a logit.

    Raises:
        LlmNeoError: a difference above the tolerance of the dtype.
    """
    recorded = Recorded.read(loaded.run, CHECKED_ROWS)
    rows = encode(loaded.tokenizer, recorded.ids, recorded.texts, loaded.recipe.data.max_length_tokens)
    logits_NC = score_rows(classifier_forward(loaded.model), rows, loaded.device, progress, label="check")
    difference = float((logits_NC - recorded.student_NC).abs().max())
    tolerance = FLOAT32_TOLERANCE if loaded.dtype == torch.float32 else BFLOAT16_TOLERANCE
    if not difference <= tolerance:
        raise LlmNeoError(
            f"the exported model's logits differ from the run's by {difference:.3g}, more than {tolerance:g}; "
            "nothing was written"
        )
    return difference
