"""The first half of a run: make the teacher, let it pass the gate, score every row once, and let it go."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llm_neo import metrics
from llm_neo.assets import ModelSource, cache_folder
from llm_neo.assets.cache import file_sha256, staged_folder
from llm_neo.batching import encode
from llm_neo.checkpoint import CheckpointStore
from llm_neo.data import Dataset
from llm_neo.errors import InputError, TeacherGateError
from llm_neo.losses import loss_of_rows
from llm_neo.metrics import GateVerdict, Scores
from llm_neo.models import adapter_folder, adapters
from llm_neo.models.load import Placement, quiet
from llm_neo.recipe import FineTune, Recipe
from llm_neo.run.setting import Setting
from llm_neo.targets import Targets, load_targets, save_targets
from llm_neo.teacher import (
    ClassifierTeacher,
    Teacher,
    TeacherBase,
    fingerprint,
    load_base_classifier,
    load_classifier_teacher,
    load_prompt_teacher,
)
from llm_neo.train import Listener, TrainSettings, train

FINE_TUNE_DEFAULTS: dict[str, Any] = {
    "weight_decay": 0.01,
    "schedule": "linear",
    "warmup_fraction": 0.0,
    "max_gradient_norm": 1.0,
}
"""What `teacher.fine_tune` leaves out is what the student's training has by default."""


@dataclass(frozen=True)
class Taught:
    """What the student's stages need to know of the teacher, which is gone by then.

    Attributes:
        targets: its logits for every training and validation row.
        scores: its figures on the validation rows.
        verdict: the gate's.
        key: fingerprint of everything that shaped the targets.
    """

    targets: Targets
    scores: Scores
    verdict: GateVerdict
    key: str


def teach(recipe: Recipe, data: Dataset, source: ModelSource, setting: Setting) -> Taught:
    """Targets for all rows of `data`, from disk where this teacher has scored these texts before.

    Raises:
        TeacherGateError: the teacher is no better than the majority class and `teacher.gate` is "stop".
    """
    base = _base(recipe, data, source, setting)
    identity = _identity(recipe, data, base)
    rows = [*data.validation.rows, *data.train.rows]
    key = fingerprint(teacher=identity, train=data.train.fingerprint, validation=data.validation.fingerprint)
    targets = load_targets(key)
    if targets is not None:
        setting.progress.say(f"teacher targets: {len(rows)} rows reused from an earlier run, the teacher is not loaded")
        return Taught(targets, *_gate(recipe, data, targets.logits_NC, targets.fresh_head, setting), key)
    with setting.measure("teacher"):
        teacher = _make(recipe, data, base, identity, setting)
        _refuse_fresh_head(recipe, teacher)
        setting.progress.say(_described(teacher, recipe.teacher.quantization))
    with setting.measure("targets"):
        validation = _score(teacher, rows[: len(data.validation.rows)], setting)
        judged = _gate(recipe, data, validation, teacher.fresh_head, setting)
        logits = torch.cat([validation, _score(teacher, rows[len(validation) :], setting)])
    loaded = teacher.loaded
    targets = Targets(tuple(row.id for row in rows), logits, teacher.fresh_head, loaded.layers, loaded.parameters)
    save_targets(targets, key, identity)
    return Taught(targets, *judged, key)


def _described(teacher: Teacher, quantization: str) -> str:
    loaded = teacher.loaded
    return (
        f"teacher: {loaded.parameters:,} parameters in {loaded.layers} layers, "
        f"{'not quantised' if quantization == 'none' else quantization}, {loaded.resident_bytes / 2**30:.2f} GiB"
    )


def _score(teacher: Teacher, rows: list[Any], setting: Setting) -> torch.Tensor:
    return teacher.score([row.id for row in rows], [row.text for row in rows], setting.progress)


def _base(recipe: Recipe, data: Dataset, source: ModelSource, setting: Setting) -> TeacherBase:
    quantization = recipe.teacher.quantization
    all_weights = recipe.teacher.fine_tune is not None and recipe.teacher.fine_tune.lora is None
    dtype = torch.float32 if all_weights else setting.precision.dtype
    return TeacherBase(
        folder=source.folder,
        spec=source.spec,
        fingerprint=source.fingerprint,
        where=Placement(setting.device, dtype, quantization),
        classes=data.classes,
        max_length_tokens=recipe.data.max_length_tokens,
        seed=recipe.teacher.fine_tune.seed if recipe.teacher.fine_tune else 0,
        trust_remote_code=recipe.runtime.trust_remote_code,
        engine=recipe.runtime.engine,
    )


def _identity(recipe: Recipe, data: Dataset, base: TeacherBase) -> dict[str, Any]:
    """All that shapes the teacher's answers."""
    teacher, identity = recipe.teacher, base.identity()
    if teacher.fine_tune is not None:
        tuned = json.loads(teacher.fine_tune.model_dump_json(exclude={"micro_batch_size"}))
        identity["fine_tune"] = tuned | FINE_TUNE_DEFAULTS
        identity["learnt_from"] = [data.train.fingerprint, data.train.label_fingerprint]
        identity["arithmetic"] = str(recipe.runtime.precision)
    elif teacher.adapter is not None:
        folder = Path(teacher.adapter).expanduser()
        adapter_folder.read_adapter_config(folder)
        names = (adapter_folder.CONFIG_FILE, adapter_folder.WEIGHTS_FILE)
        identity["adapter"] = [file_sha256(folder / name) for name in names]
    elif teacher.prompt is not None:
        identity["prompt"] = json.loads(teacher.prompt.model_dump_json())
    return identity


def _make(recipe: Recipe, data: Dataset, base: TeacherBase, identity: dict[str, Any], setting: Setting) -> Teacher:
    teacher = recipe.teacher
    if teacher.fine_tune is not None:
        return _fine_tuned(teacher.fine_tune, data, base, fingerprint(**identity), recipe, setting)
    if teacher.prompt is not None:
        return load_prompt_teacher(base, teacher.prompt)
    return load_classifier_teacher(base, Path(teacher.adapter).expanduser() if teacher.adapter else None)


def _fine_tuned(
    tuning: FineTune, data: Dataset, base: TeacherBase, key: str, recipe: Recipe, setting: Setting
) -> Teacher:
    """The fine-tuned teacher, from disk where nothing that shaped it has changed."""
    folder = cache_folder() / "teachers" / key
    if folder.is_dir():
        setting.progress.say("teacher: reused from an earlier run, nothing that shaped it has changed")
        return _reload(tuning, base, folder)
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
        listener=Listener(log=lambda logged: setting.log("teacher", logged), evaluate=_never),
        progress=setting.progress,
        label="teacher fine-tuning",
        store=CheckpointStore(setting.run.checkpoints / "teacher", key),
        engine=recipe.runtime.engine,
    )
    model.eval().requires_grad_(False)
    with staged_folder(folder) as stage:
        if tuning.lora is None:
            with quiet():
                loaded.model.save_pretrained(stage)
            loaded.tokenizer.save_pretrained(stage)
        else:
            adapters.save_adapter(model, stage, base.spec)  # type: ignore[arg-type]
    return ClassifierTeacher(loaded, model, list(range(len(base.classes))), base, fresh_head=False)


def _reload(tuning: FineTune, base: TeacherBase, folder: Path) -> Teacher:
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


def _refuse_fresh_head(recipe: Recipe, teacher: Teacher) -> None:
    """Say so before the scoring, which is what costs."""
    if teacher.fresh_head and recipe.teacher.gate == "stop":
        raise TeacherGateError(
            f"the teacher {recipe.teacher.model} has no trained classification head: its answers would be random. "
            "Train one with teacher.fine_tune, give teacher.adapter or teacher.prompt, or let it pass with "
            "teacher.gate=warn"
        )


def _gate(
    recipe: Recipe, data: Dataset, logits_NC: torch.Tensor, fresh_head: bool, setting: Setting
) -> tuple[Scores, GateVerdict]:
    """Measure the teacher on the validation rows and hold it to the rule of `metrics.gate_verdict`."""
    labels = [row.label for row in data.validation.rows if row.label is not None]
    if len(labels) != len(data.validation.rows):
        raise InputError("every validation row needs a label; name data.validation.label")
    labels_N = torch.tensor(labels)
    scores = metrics.score_predictions(logits_NC[: len(labels)], labels_N, len(data.classes))
    verdict = metrics.gate_verdict(scores, metrics.majority_share(labels_N, len(data.classes)), fresh_head=fresh_head)
    setting.progress.say(f"teacher gate {'passed' if verdict.passed else 'FAILED'}: {verdict.rule}")
    if not verdict.passed and recipe.teacher.gate == "stop":
        raise TeacherGateError(
            f"{verdict.rule} A student would learn noise from it: train it longer or with another learning rate "
            "(teacher.fine_tune), choose another teacher, or let it pass with teacher.gate=warn"
        )
    return scores, verdict
