"""One variant, measured in the process that it has for itself."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks import baseline, product
from benchmarks.clock import Stopwatch, steady
from benchmarks.memory import DeviceMemory, peak_host_bytes
from benchmarks.record import Measured, Work
from benchmarks.scene import Scene
from benchmarks.shapes import product_parameters
from benchmarks.variants import BASELINES, ENGINES
from benchmarks.workload import BATCH_ROWS, balanced_blocks, spread
from llm_neo.evaluate import classifier_forward, score_rows, select_rows
from llm_neo.runtime import release

if TYPE_CHECKING:
    from numpy.typing import NDArray


_WARM_UP_ROWS = 256
_BLOCKS = 3


def measure(variant: str, scene: Scene) -> Measured:
    """Time and memory of the variant of a letter."""
    return measure_baseline(variant, scene) if variant in BASELINES else measure_product(variant, scene)


def measure_baseline(variant: str, scene: Scene) -> Measured:
    """Variants a to d: warm-up steps, timed steps, an evaluation or some of its batches."""
    device, workload, effort = scene.device, scene.workload, scene.effort
    how = baseline.describe(variant, scene.dtype)
    memory = DeviceMemory(device)
    task = baseline.Distillation(how, scene.models, workload.rows, workload.labels, device)
    steps = scene.options.steps or effort.baseline_steps
    task.train(workload.typical_batches(effort.warm_up, how.padded_to, scene.options.seed + 1))
    seconds = []
    for block in balanced_blocks(workload.typical_batches(steps, how.padded_to, scene.options.seed), _BLOCKS):
        with Stopwatch(device) as training:
            task.train(block)
        seconds.append(training.seconds / len(block))
    evaluation_seconds = _evaluate(task, scene)
    memory.end_stage("training")
    return Measured(
        work=Work(
            product_parameters(scene.models.teacher_config()),
            product_parameters(scene.models.student_config()),
            passes=2 if how.lora else 3,
            teacher_inline=True,
        ),
        per_step=steady(seconds),
        steps_timed=steps,
        evaluation_seconds=evaluation_seconds,
        scoring_seconds=0.0,
        start_seconds=0.0,
        training_seconds=None,
        extrapolated=True,
        stage_peaks=memory.peaks,
        host_peak=peak_host_bytes(),
        engine=None,
    )


def _evaluate(task: baseline.Distillation, scene: Scene) -> float:
    """Seconds of an evaluation: of all batches at once, or as many times the median of some whose sizes are spread."""
    rows, count = scene.workload.validation, scene.effort.evaluation_batches
    batches = baseline.evaluation_batches(rows)
    task.evaluate(rows, batches[:1])
    if count is None or count >= len(batches):
        with Stopwatch(scene.device) as watch:
            task.evaluate(rows, batches)
        return watch.seconds
    seconds = []
    for place in spread(np.array([rows.lengths[batch].max() for batch in batches]), count):
        with Stopwatch(scene.device) as watch:
            task.evaluate(rows, [batches[place]])
        seconds.append(watch.seconds)
    return steady(seconds).seconds * len(rows) / BATCH_ROWS


def measure_product(variant: str, scene: Scene) -> Measured:
    """Variants e and f: the teacher scores its rows and is freed, then the student is trained and evaluated."""
    device, workload, engine = scene.device, scene.workload, ENGINES[variant]
    memory = DeviceMemory(device)
    whole = variant in scene.options.whole_epoch and workload.whole
    limit = scene.effort.score_rows if scene.options.score_rows is None else scene.options.score_rows
    scored_rows = workload.sample(len(workload.rows) if whole or not limit else limit)
    logits_NC, scoring_seconds, scoring_start = _score(scene, scored_rows, engine)
    memory.end_stage("scoring")
    student = product.load_student(scene.models, scene.dtype, scene.options.seed)
    trained = _train(engine, scene, student, scored_rows, logits_NC, whole)
    evaluation_seconds = product.evaluate(student, workload.validation, engine, device)
    memory.end_stage("training")
    return Measured(
        work=Work(product_parameters(scene.models.teacher_config()), product_parameters(scene.models.student_config())),
        per_step=trained.per_step,
        steps_timed=trained.steps_timed,
        evaluation_seconds=evaluation_seconds,
        scoring_seconds=scoring_seconds,
        start_seconds=scoring_start + (0.0 if whole else trained.start_seconds),
        training_seconds=trained.seconds if whole else None,
        extrapolated=not whole,
        stage_peaks=memory.peaks,
        host_peak=peak_host_bytes(),
        engine=trained.engine,
    )


def _score(scene: Scene, chosen: "NDArray[np.int64]", engine: product.Engine) -> tuple[torch.Tensor, float, float]:
    """The teacher's logits for the chosen rows, (N, C), the epoch's scoring seconds, and those of a first try."""
    device, workload = scene.device, scene.workload
    teacher = product.load_teacher(scene.models, scene.dtype)
    forward = classifier_forward(teacher, engine=engine)
    few = select_rows(workload.rows, workload.sample(_WARM_UP_ROWS))
    with Stopwatch(device) as first:
        score_rows(forward, few, device)
    with Stopwatch(device) as again:
        score_rows(forward, few, device)
    rows = select_rows(workload.rows, chosen)
    with Stopwatch(device) as training:
        logits_NC = score_rows(forward, rows, device)
    with Stopwatch(device) as validation:
        score_rows(forward, workload.validation, device)
    del teacher, forward
    release(device)
    share = workload.training_tokens / float(rows.lengths.sum())
    seconds = training.seconds * share + validation.seconds
    return logits_NC, seconds, max(0.0, first.seconds - again.seconds)


def _train(
    engine: product.Engine,
    scene: Scene,
    student: torch.nn.Module,
    scored: "NDArray[np.int64]",
    logits_NC: torch.Tensor,
    whole: bool,
) -> product.Trained:
    """All scored rows, or some steps over some of them whose lengths are spread as those of all.

    Args:
        engine: which of LLM-Neo's engines takes the steps.
        scene: the surroundings.
        student: with adapters.
        scored: places of the scored rows in the split, (N,).
        logits_NC: the teacher's answers to them.
        whole: train on all of them, and evaluate on the way.
    """
    effort, workload, options = scene.effort, scene.workload, scene.options
    rows = select_rows(workload.rows, scored)
    labels_N = torch.from_numpy(workload.labels[scored])
    if not whole:
        steps = effort.neo_warm_up + _rounded_up(options.steps or effort.neo_steps, effort.log_every)
        count = min(steps * BATCH_ROWS, len(rows) // BATCH_ROWS * BATCH_ROWS)
        kept = np.sort(spread(rows.lengths, count))
        rows, labels_N, logits_NC = select_rows(rows, kept), labels_N[kept], logits_NC[kept]
    return product.timed_training(
        student,
        rows,
        product.objective(labels_N.to(scene.device), logits_NC.to(scene.device)),
        engine,
        scene.device,
        warm_up=effort.neo_warm_up,
        log_every=effort.log_every,
        seed=options.seed,
        validation=workload.validation,
        evaluate_every=workload.epoch.evaluate_every if whole else None,
    )


def _rounded_up(number: int, step: int) -> int:
    return -(-number // step) * step
