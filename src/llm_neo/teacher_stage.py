"""The first half of a run: make the teacher, let it pass the gate, score every row once, and let it go."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_neo import metrics
from llm_neo.assets import ModelSource
from llm_neo.assets.cache import file_sha256
from llm_neo.data import Dataset
from llm_neo.errors import InputError, TeacherGateError
from llm_neo.fine_tuning import FINE_TUNE_DEFAULTS, fine_tuned_teacher
from llm_neo.metrics import GateVerdict, Scores
from llm_neo.models import adapter_folder
from llm_neo.models.load import Placement
from llm_neo.prompted import load_prompt_teacher
from llm_neo.recipe import Recipe
from llm_neo.run.setting import Setting
from llm_neo.scoring import ROWS_PER_SHARD, score_shards, shards_of
from llm_neo.targets import Targets, TargetStore
from llm_neo.teacher import (
    Teacher,
    TeacherBase,
    fingerprint,
    load_classifier_teacher,
)


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
    identity = _identity(recipe, data, base, str(setting.precision.dtype))
    key = fingerprint(teacher=identity, train=data.train.fingerprint, validation=data.validation.fingerprint)
    size = ROWS_PER_SHARD[setting.device.type]
    first = shards_of(data.validation.rows, size)
    shards = [*first, *shards_of(data.train.rows, size)]
    store = TargetStore(key, tuple(tuple(row.id for row in rows) for rows in shards))
    with store.locked(setting.progress.say):
        targets = store.load()
        if targets is not None:
            setting.progress.say(
                f"teacher targets: {len(targets.row_ids)} rows reused from an earlier run, the teacher is not loaded"
            )
            validation_NC = targets.of([row.id for row in data.validation.rows])
            return Taught(targets, *_gate(recipe, data, validation_NC, targets.fresh_head, setting), key)
        with setting.measure("teacher"):
            teacher = _make(recipe, data, base, identity, setting)
            _refuse_fresh_head(recipe, teacher)
            setting.progress.say(_described(teacher, recipe.teacher.quantization))
        with setting.measure("targets"):
            numbered = dict(enumerate(shards))
            answers = score_shards(teacher, {n: numbered.pop(n) for n in range(len(first))}, store, setting.progress)
            validation_NC = torch.stack([answers[row.id] for row in data.validation.rows])
            judged = _gate(recipe, data, validation_NC, teacher.fresh_head, setting)
            answers |= score_shards(teacher, numbered, store, setting.progress)
            targets = _targets(teacher, answers)
            store.finish(targets, identity)
    return Taught(targets, *judged, key)


def _targets(teacher: Teacher, answers: dict[str, torch.Tensor]) -> Targets:
    loaded = teacher.loaded
    logits_NC = torch.stack(list(answers.values()))
    return Targets(tuple(answers), logits_NC, teacher.fresh_head, loaded.layers, loaded.parameters)


def _described(teacher: Teacher, quantization: str) -> str:
    loaded = teacher.loaded
    return (
        f"teacher: {loaded.parameters:,} parameters in {loaded.layers} layers, "
        f"{'not quantised' if quantization == 'none' else quantization}, {loaded.resident_bytes / 2**30:.2f} GiB"
    )


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


def _identity(recipe: Recipe, data: Dataset, base: TeacherBase, arithmetic: str) -> dict[str, Any]:
    """All that shapes the teacher's answers."""
    teacher, identity = recipe.teacher, base.identity()
    if teacher.fine_tune is not None:
        tuned = json.loads(teacher.fine_tune.model_dump_json(exclude={"micro_batch_size"}))
        identity["fine_tune"] = tuned | FINE_TUNE_DEFAULTS
        identity["learnt_from"] = [data.train.fingerprint, data.train.label_fingerprint]
        identity["arithmetic"] = arithmetic
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
        return fine_tuned_teacher(teacher.fine_tune, data, base, identity, recipe, setting)
    if teacher.prompt is not None:
        return load_prompt_teacher(base, teacher.prompt)
    return load_classifier_teacher(base, Path(teacher.adapter).expanduser() if teacher.adapter else None)


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
    scores = metrics.score_predictions(logits_NC, labels_N, len(data.classes))
    verdict = metrics.gate_verdict(scores, metrics.majority_share(labels_N, len(data.classes)), fresh_head=fresh_head)
    setting.progress.say(f"teacher gate {'passed' if verdict.passed else 'FAILED'}: {verdict.rule}")
    if not verdict.passed and recipe.teacher.gate == "stop":
        raise TeacherGateError(
            f"{verdict.rule} A student would learn noise from it: train it longer or with another learning rate "
            "(teacher.fine_tune), choose another teacher, or let it pass with teacher.gate=warn"
        )
    return scores, verdict
