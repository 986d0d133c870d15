"""The student as files that the rest of the Hugging Face world loads: adapter, cut base, merged model."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from llm_neo.errors import InputError, LlmNeoError
from llm_neo.files import filled_folder
from llm_neo.inference import LoadedRun, load_run, select_student_device
from llm_neo.models import adapters, load
from llm_neo.models.layers import select_layers
from llm_neo.models.load import Placement, quiet
from llm_neo.progress import Progress
from llm_neo.recipe import Recipe, load_recipe
from llm_neo.run.directory import RunDirectory
from llm_neo.run.predictions import Comparison, Predictions, compare, read_predictions
from llm_neo.run.record import RunRecord, read_run
from llm_neo.student_base import BASE_FOLDER
from llm_neo.student_stage import Student

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHECKED_ROWS = 512
"""Wrong weights move every row's logits, so a sample finds them; it takes 15 s with 135M weights on two cores."""
ROWS_AT_ONCE = 16


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
        _save_tokenizer(student.tokenizer, folder)
    else:
        source = student.source
        named = BASE_FOLDER if student.own_base else source.hub_id or str(source.folder.absolute())
        commit = None if student.own_base else source.commit
        adapters.save_adapter(student.model, folder, named, commit)  # type: ignore[arg-type]
        _save_tokenizer(student.tokenizer, folder)
        if student.own_base:
            _save_base(student, recipe, folder / BASE_FOLDER)
    _let_others_read(folder)


def _save_base(student: Student, recipe: Recipe, folder: Path) -> None:
    """The pretrained weights that the adapter stands on, in the dtype that they came in."""
    source = student.source
    config = load.load_config(source.folder, source.spec, recipe.runtime.trust_remote_code)
    stored = getattr(config, "dtype", None)
    where = Placement(torch.device("cpu"), stored if isinstance(stored, torch.dtype) else torch.float32)
    pristine = load.load_classifier(
        source.folder,
        source.spec,
        list(dict(student.base.config.id2label or {}).values()),
        where,
        max_length_tokens=recipe.data.max_length_tokens,
        seed=recipe.train.seed,
        trust_remote_code=recipe.runtime.trust_remote_code,
    )
    select_layers(pristine.model, recipe.student.layers)
    torch.nn.Module.to(pristine.model, dtype=where.dtype)
    with quiet():
        pristine.model.save_pretrained(folder)
    _save_tokenizer(pristine.tokenizer, folder)


def _save_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write what belongs to the tokenizer, not how it was loaded here or where the last texts were cut."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    for ours in ("local_files_only", "is_local"):
        tokenizer.init_kwargs.pop(ours, None)
    tokenizer.save_pretrained(folder)


def _let_others_read(folder: Path) -> None:
    """Give the weights the rights of the other files; safetensors writes for the owner alone."""
    for file in folder.rglob("*.safetensors"):
        beside = next(file.parent.glob("*config.json"))
        file.chmod(beside.stat().st_mode)


def export_run(run: Path, kind: Literal["adapter", "merged"], progress: Progress, output: Path | None = None) -> Path:
    """Write the run's student in another form and check it against the run's own logits.

    Args:
        run: a finished run directory.
        kind: "adapter" = the folder as it is; "merged" = one model without adapters.
        progress: is told of the stages.
        output: is made; None = `export/KIND` in the run.

    Returns:
        The folder.

    Raises:
        InputError: no finished run, an output that is not empty, or a student that was changed since the run.
        LlmNeoError: what was written does not answer like the run, though the run's student does.
    """
    directory = RunDirectory(run)
    record, recipe = read_run(run), load_recipe(str(directory.recipe))
    if kind == "adapter" and recipe.student.lora is None:
        raise InputError(f"the run in {run} trained all weights and has no adapter; export it with --to merged")
    target = output or run / "export" / kind
    _refuse_target(target, directory)
    recorded = read_predictions(directory, record, CHECKED_ROWS)
    progress.stage("export")
    with filled_folder(target, _needed_bytes(record, directory, kind)) as stage:
        if kind == "adapter":
            shutil.copytree(directory.student, stage, dirs_exist_ok=True)
            found = _check_adapter(run, stage, recorded, progress)
        else:
            dtype = _recorded_dtype(record, recipe)
            merge(load_run(run, device="cpu", dtype=torch.float32), stage, dtype)
            found = _check_merged(run, stage, recorded, progress)
    progress.say(
        f"checked on {found.rows} rows: no logit is further than {found.difference:.2g} from the run's "
        f"(rounding explains {found.tolerance:.2g})"
    )
    return target


def _refuse_target(target: Path, run: RunDirectory) -> None:
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise InputError(f"{target} exists already; remove it or name another folder with --output")
    if target.resolve().is_relative_to(run.student.resolve()):
        raise InputError(f"{target} lies in the run's own student; name a folder outside it with --output")


def _needed_bytes(record: RunRecord, run: RunDirectory, kind: Literal["adapter", "merged"]) -> int | None:
    """What the export will take on the disk: the student's own files, or all weights in at most four bytes each."""
    if kind == "merged":
        return None if record.student.total_parameters is None else 4 * record.student.total_parameters
    return sum(file.stat().st_size for file in run.student.rglob("*") if file.is_file())


def _recorded_dtype(record: RunRecord, recipe: Recipe) -> torch.dtype:
    """Of the arithmetic that made the run's logits, and so of a merged model; all weights are trained in float32."""
    adapted_in_bfloat16 = recipe.student.lora is not None and record.environment.precision == "bfloat16"
    return torch.bfloat16 if adapted_in_bfloat16 else torch.float32


def merge(precise: LoadedRun, folder: Path, dtype: torch.dtype) -> None:
    """Add the adapters into the base and write one classifier.

    Args:
        precise: the run's student in float32, so that weights are rounded once; it is used up.
        folder: is made.
        dtype: of the written weights.
    """
    base = precise.model
    if hasattr(base, "merge_and_unload"):
        base = base.merge_and_unload()
    base.to(dtype)
    base.config.dtype = dtype
    with quiet():
        base.save_pretrained(folder)
    _save_tokenizer(precise.tokenizer, folder)
    _let_others_read(folder)


def _check_adapter(run: Path, folder: Path, recorded: Predictions, progress: Progress) -> Comparison:
    """Hold the answers of a student's folder against those that the run recorded.

    Raises:
        InputError: they differ.
    """
    loaded = load_run(run, student=folder)
    answers_NC = loaded.logits(list(recorded.ids), list(recorded.texts), progress, "check")
    found = compare(answers_NC, recorded, loaded.dtype, _recorded_dtype(loaded.record, loaded.recipe))
    if not found.same:
        raise InputError(
            f"the student in {run} no longer answers as it did at the end of the run: {_told(found)}. Its adapter, "
            f"its base or predictions.jsonl was changed since; nothing was exported: restore them or distil again"
        )
    return found


def _check_merged(run: Path, folder: Path, recorded: Predictions, progress: Progress) -> Comparison:
    """The same for a merged model, loaded by transformers alone and asked as any user would ask it.

    Raises:
        InputError: they differ, and so do those of the run's own student.
        LlmNeoError: they differ because of the merge.
    """
    recipe, record = load_recipe(str(RunDirectory(run).recipe)), read_run(run)
    answers_NC = _plain_logits(folder, recorded, recipe, progress)
    found = compare(answers_NC, recorded, _recorded_dtype(record, recipe))
    if not found.same:
        _check_adapter(run, RunDirectory(run).student, recorded, progress)
        raise LlmNeoError(
            f"merging changed the student's answers: {_told(found)}. The unmerged student answers as it did in the "
            "run, so use that (--to adapter) and report this; nothing was exported"
        )
    return found


def _told(found: Comparison) -> str:
    return (
        f"of row {found.row} a logit is off by {found.difference:.3g}, where rounding explains {found.tolerance:.2g}, "
        f"and {found.changed} of {found.rows} checked rows get another class"
    )


def _plain_logits(folder: Path, recorded: Predictions, recipe: Recipe, progress: Progress) -> torch.Tensor:
    """What transformers alone makes of the folder, (N, C): padded batches, its own pooling and its own limit."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    device, trusted = select_student_device(recipe), recipe.runtime.trust_remote_code
    with quiet():
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype="auto", use_safetensors=True, trust_remote_code=trusted
        )
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
    model.to(device).eval()
    order = sorted(range(len(recorded.texts)), key=lambda row: sum(map(len, recorded.texts[row])))
    answers_NC = torch.empty_like(recorded.student_NC)
    with progress.bar("check", len(order), "rows") as bar, torch.no_grad():
        for start in range(0, len(order), ROWS_AT_ONCE):
            rows = order[start : start + ROWS_AT_ONCE]
            columns = [list(column) for column in zip(*(recorded.texts[row] for row in rows), strict=True)]
            inputs = tokenizer(*columns, padding=True, truncation=True, return_tensors="pt").to(device)
            answers_NC[rows] = model(**inputs).logits.float().cpu()
            bar.advance(len(rows))
    return answers_NC
