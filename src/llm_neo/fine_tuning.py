"""The teacher's own training on the labelled rows, before it teaches; kept on disk for other runs of it."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llm_neo.assets import cache_folder
from llm_neo.assets.cache import locked, staged_folder
from llm_neo.assets.seals import changed_in, seal_folder
from llm_neo.batching import encode
from llm_neo.checkpoint import CheckpointStore
from llm_neo.data import Dataset
from llm_neo.errors import InputError
from llm_neo.losses import loss_of_rows
from llm_neo.models import adapters
from llm_neo.models.load import quiet
from llm_neo.recipe import FineTune, Recipe
from llm_neo.run.setting import Setting
from llm_neo.schedule import TrainSettings
from llm_neo.teacher import (
    ClassifierTeacher,
    Teacher,
    TeacherBase,
    fingerprint,
    load_base_classifier,
    load_classifier_teacher,
)
from llm_neo.train import Listener, train

FINE_TUNE_DEFAULTS: dict[str, Any] = {
    "weight_decay": 0.01,
    "schedule": "linear",
    "warmup_fraction": 0.0,
    "max_gradient_norm": 1.0,
}
"""What `teacher.fine_tune` leaves out is what the student's training has by default."""


def fine_tuned_teacher(
    tuning: FineTune, data: Dataset, base: TeacherBase, identity: dict[str, Any], recipe: Recipe, setting: Setting
) -> Teacher:
    """The fine-tuned teacher, from disk where nothing that shaped it has changed.

    Args:
        tuning: how it is trained.
        data: rows to learn from.
        base: the model.
        identity: everything that shapes the teacher, as JSON can write it.
        recipe: engine, logging and checkpoints.
        setting: the run's surroundings.

    Raises:
        NonFiniteError: a loss or gradient is not finite.
        InputError: the one on disk is damaged; the file is named.
    """
    key = fingerprint(**identity)
    folder = cache_folder() / "teachers" / key
    with locked(folder.with_name(f"{key}.lock"), "fine-tunes the same teacher", setting.progress.say):
        if folder.is_dir():
            setting.progress.say("teacher: reused from an earlier run, nothing that shaped it has changed")
            return _reload(tuning, base, folder)
        return _fine_tune(tuning, data, base, identity, recipe, setting, folder)


def _fine_tune(
    tuning: FineTune,
    data: Dataset,
    base: TeacherBase,
    identity: dict[str, Any],
    recipe: Recipe,
    setting: Setting,
    folder: Path,
) -> Teacher:
    """Train the teacher and keep it in `folder`."""
    loaded = load_base_classifier(base)
    if tuning.lora is None:
        model: torch.nn.Module = adapters.open_all_weights(loaded.model)
    else:
        model = adapters.add_adapters(loaded.model, tuning.lora, base.seed)
    rows = [row for row in data.train.rows if row.label is not None]
    tokens = encode(loaded.tokenizer, [r.id for r in rows], [r.text for r in rows], base.max_length_tokens)
    labels_N = torch.tensor([row.label for row in rows], device=base.where.device)
    train(
        model,
        tokens,
        loss_of_rows(
            None, labels_N, torch.ones_like(labels_N, dtype=torch.bool), hard_label_weight=1.0, temperature=1.0
        ),
        _train_settings(tuning, recipe),
        device=base.where.device,
        autocast_dtype=setting.precision.dtype if tuning.lora is None else None,
        listener=Listener(
            log=partial(setting.log, "teacher"), evaluate=_never, begin=partial(setting.begin, "teacher")
        ),
        progress=setting.progress,
        label="teacher fine-tuning",
        store=CheckpointStore(setting.run.checkpoints / "teacher", {"teacher": identity}),
        engine=recipe.runtime.engine,
        section="teacher.fine_tune",
    )
    model.eval().requires_grad_(False)
    with staged_folder(folder) as stage:
        if tuning.lora is None:
            with quiet():
                loaded.model.save_pretrained(stage)
            loaded.tokenizer.save_pretrained(stage)
        else:
            adapters.save_adapter(model, stage, base.spec)  # type: ignore[arg-type]
        seal_folder(stage)
    return ClassifierTeacher(loaded, model, list(range(len(base.classes))), base, fresh_head=False)


def _reload(tuning: FineTune, base: TeacherBase, folder: Path) -> Teacher:
    changed = changed_in(folder)
    if changed is not None:
        raise InputError(f"{folder / changed}, a fine-tuned teacher's, is damaged; delete {folder} and run again")
    if tuning.lora is not None:
        return load_classifier_teacher(base, folder)
    return load_classifier_teacher(replace(base, folder=folder), None, trained_here=True)


def _train_settings(tuning: FineTune, recipe: Recipe) -> TrainSettings:
    return TrainSettings(
        epochs=tuning.epochs,
        batch_size=tuning.batch_size,
        micro_batch_size=tuning.micro_batch_size,
        learning_rate=tuning.learning_rate,
        seed=tuning.seed,
        evaluate_every_steps=None,
        checkpoint_every_steps=recipe.train.checkpoint_every_steps,
        log_every_steps=recipe.train.log_every_steps,
        **FINE_TUNE_DEFAULTS,
    )


def _never(step: int, epoch: float, training_loss: float) -> dict[str, Any]:
    raise AssertionError("the teacher is evaluated once, by the gate")
