"""The run as a straight line: recipe, data, teacher, targets, student, training, evaluation, files."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llm_neo.assets import ModelSource, resolve_model
from llm_neo.checkpoint import CheckpointStore
from llm_neo.data import Dataset, load_data
from llm_neo.errors import InputError
from llm_neo.files import write_text_atomically
from llm_neo.models.adapter_folder import doubt_of_base
from llm_neo.models.check import check_model
from llm_neo.progress import Progress, SilentProgress
from llm_neo.reading import Reading, read_both
from llm_neo.recipe import Recipe, check_environment, dump_recipe, load_recipe
from llm_neo.run.directory import RunDirectory, abandon, discard_previous, prepare, reopen
from llm_neo.run.metrics_log import MetricsLog
from llm_neo.run.record import RunRecord
from llm_neo.run.result import Result, write_result
from llm_neo.run.setting import CountedProgress, Setting
from llm_neo.run.trackers import open_trackers
from llm_neo.runtime import select_device, select_precision
from llm_neo.student_stage import learn, load_student
from llm_neo.teacher_stage import Taught, teach

Identity = dict[str, Any]
"""What shapes a run, nested as the recipe is; see `CheckpointStore`."""


def distill(recipe: Recipe, progress: Progress | None = None, *, overwrite: bool = False) -> RunRecord:
    """Distil the recipe's teacher into its student; everything is in `recipe.output` when it returns.

    Args:
        recipe: as `load_recipe` gives it.
        progress: whom to tell; None = nobody.
        overwrite: replace an earlier run in `recipe.output`, once data and models are known to be right.

    Returns:
        What `run.json` holds.

    Raises:
        InputError: the recipe's data, models or output cannot be used.
        TeacherGateError: the teacher is no better than the majority class.
        NonFiniteError: a loss, gradient or logit is NaN or infinite.
        ResourceError: out of memory or disk.
    """
    check_environment(recipe)
    run = prepare(recipe.output, overwrite=overwrite)
    write_text_atomically(run.recipe, dump_recipe(recipe))
    try:
        return _run(recipe, run, progress or SilentProgress())
    except InputError:
        abandon(run)
        raise


def resume(path: Path, progress: Progress | None = None) -> RunRecord:
    """Go on with an interrupted run: from its last checkpoint, with the targets that are scored already.

    Args:
        path: the run directory.
        progress: whom to tell; None = nobody.

    Raises:
        InputError: there is no such run, it is finished, or what it was made of has changed since; each changed
            field is named.
    """
    run = reopen(path)
    recipe = load_recipe(str(run.recipe))
    check_environment(recipe)
    # Said before the data are read and the teacher scores anew for a run that cannot go on.
    CheckpointStore(run.checkpoints / "student", _fields(recipe)).refuse_changes()
    return _run(recipe, run, progress or SilentProgress())


def _run(recipe: Recipe, run: RunDirectory, shown: Progress) -> RunRecord:
    with _setting(recipe, run, shown) as setting:
        with setting.measure("data"):
            data = load_data(recipe.data, setting.progress)
            sources, reading = _sources(recipe, data, setting)
        discard_previous(run)
        taught = teach(recipe, data, sources[0], setting)
        with setting.measure("train"):
            student = load_student(recipe, data.classes, sources[1], setting)
            identity = _identity(recipe, taught, sources, setting)
            learnt = learn(student, recipe, data, taught.targets, setting, identity=identity)
    return write_result(Result(recipe, data, reading, taught, student, learnt, setting))


@contextmanager
def _setting(recipe: Recipe, run: RunDirectory, shown: Progress) -> Iterator[Setting]:
    device = select_device(recipe.runtime.device)
    precision = select_precision(recipe.runtime.precision, device)
    shown.say(f"device {device}, {precision.reason}")
    if recipe.runtime.memory_limit_gib is not None:
        _limit_memory(recipe.runtime.memory_limit_gib, device)
    with MetricsLog(run.metrics) as log, open_trackers(recipe.trackers, run.path) as trackers:
        yield Setting(device, precision, CountedProgress(shown), run, log, trackers)


def _limit_memory(gib: float, device: torch.device) -> None:
    if device.type != "cuda":
        raise InputError(
            f"runtime.memory_limit_gib: {gib:g} limits a GPU's memory, but "
            f"the run is on the {device.type}; set it to null"
        )
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total), device)


def _sources(recipe: Recipe, data: Dataset, setting: Setting) -> tuple[tuple[ModelSource, ModelSource], Reading]:
    """Teacher's and student's files, fetched; that both are what they should be is known before a weight loads.

    What a user should know of the rows and of how the two read them is said here, before anything is computed.
    """
    limit, trusted = recipe.data.max_length_tokens, recipe.runtime.trust_remote_code
    check = partial(check_model, max_length_tokens=limit, trust_remote_code=trusted)
    teacher = resolve_model(recipe.teacher.model, setting.progress)
    tuned = recipe.teacher.fine_tune.lora if recipe.teacher.fine_tune else None
    lora = ("teacher.fine_tune.lora", tuned) if tuned else None
    prompted = recipe.teacher.prompt is not None
    of_teacher = check(teacher.folder, teacher.spec, prompted=prompted, lora=lora)
    student = resolve_model(recipe.student.model, setting.progress)
    lora = ("student.lora", recipe.student.lora) if recipe.student.lora else None
    of_student = check(student.folder, student.spec, layers=recipe.student.layers, lora=lora)
    texts = [row.text for row in (*data.train.rows, *data.validation.rows)]
    reading = read_both(of_teacher, of_student, texts, limit, prompted=prompted)
    if recipe.teacher.adapter is not None:
        doubt = doubt_of_base(Path(recipe.teacher.adapter).expanduser(), teacher.spec, teacher.folder)
        reading = replace(reading, notes=(*reading.notes, *doubt))
    for note in (*data.notes, *reading.notes):
        setting.progress.say(note)
    return (teacher, student), reading


def _identity(recipe: Recipe, taught: Taught, sources: tuple[ModelSource, ModelSource], setting: Setting) -> Identity:
    """Everything that shapes the student's training, beside the recipe what its names stood for."""
    return _fields(recipe) | {
        "device": setting.device.type,
        "precision": str(setting.precision.dtype),
        "files of student.model": sources[1].fingerprint,
        "teacher targets": taught.key,
    }


def _fields(recipe: Recipe) -> Identity:
    """The recipe without what may change between two parts of a run.

    Names of files and models may: what they stand for is compared by content. `micro_batch_size` may, since lowering it
    is the way out of a lack of memory: the loss stays the same up to rounding and the draws of dropout.
    """
    fields: Identity = recipe.model_dump(mode="json", exclude={"output", "trackers"})
    named = [fields["data"][key] for key in ("train", "validation", "unlabelled")]
    shapeless = {
        "source": named,
        "model": [fields["teacher"], fields["student"]],
        "gate": [fields["teacher"]],
        "adapter": [fields["teacher"]],
        "micro_batch_size": [fields["teacher"]["fine_tune"], fields["train"]],
        "checkpoint_every_steps": [fields["train"]],
        "log_every_steps": [fields["train"]],
        "memory_limit_gib": [fields["runtime"]],
    }
    for key, sections in shapeless.items():
        for section in sections:
            (section or {}).pop(key, None)
    return fields
