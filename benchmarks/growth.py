"""How LLM-Neo's time grows: an epoch with its rows; a step with its batch, its texts' length, its student."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks import product
from benchmarks.clock import Steady, Stopwatch
from benchmarks.scene import Scene
from benchmarks.shapes import attention_share, product_parameters
from benchmarks.slope import log_log_slope
from benchmarks.workload import BATCH_ROWS, MEAN_TOKENS, equal_rows
from llm_neo.evaluate import classifier_forward, score_rows, select_rows
from llm_neo.runtime import release

if TYPE_CHECKING:
    from peft import PeftModel

    from llm_neo.batching import TokenRows

_SHORT_SECONDS = 5.0
"""Scoring that ends sooner is done twice and the better time kept, since one stop of the machine would bend a curve."""

Curve = dict[str, Any]
Point = tuple[float, Steady]


def curves(scene: Scene, engine: product.Engine) -> list[Curve]:
    """The four curves, each with its slope.

    Args:
        scene: the surroundings.
        engine: of LLM-Neo, for scoring and steps.
    """
    found = [_curve("rows of an epoch", list(_epochs(scene, engine)))]
    student = product.load_student(scene.models, scene.dtype, scene.options.seed)
    found.append(_curve("rows of a step", list(_batch_sizes(scene, engine, student))))
    lengths = list(_lengths(scene, engine, student))
    config = scene.models.student_config()
    shares = [attention_share(config, int(length)) for length, _ in lengths]
    found.append(_curve("tokens of each row of a step", lengths, shares))
    del student
    release(scene.device)
    return [*found, _curve("weights of the student's layers", list(_students(scene, engine)))]


def _curve(axis: str, points: list[Point], attention_shares: list[float] | None = None) -> Curve:
    """A curve as `growth.json` has it; with shares also the slope of what is not attention's own work."""
    curve: Curve = {
        "axis": axis,
        "points": [{"x": x, "seconds": y.seconds, "slowest_block": y.slowest} for x, y in points],
        "slope": log_log_slope([(x, y.seconds) for x, y in points]),
    }
    if attention_shares is not None:
        rest = [(x, y.seconds * (1 - share)) for (x, y), share in zip(points, attention_shares, strict=True)]
        curve["slope_without_attention"] = log_log_slope(rest)
    return curve


def _epochs(scene: Scene, engine: product.Engine) -> Iterator[Point]:
    """(rows, seconds of scoring them and of all their steps); what only the first batches cost is left out."""
    workload, device, sizes = scene.workload, scene.device, scene.effort.growth.rows
    samples = [select_rows(workload.rows, workload.sample(size)) for size in sizes]
    teacher = product.load_teacher(scene.models, scene.dtype)
    forward = classifier_forward(teacher, engine=engine)
    score_rows(forward, samples[0], device)
    scored: list[tuple[torch.Tensor, float]] = []
    for rows in samples:
        with Stopwatch(device) as watch:
            logits_NC = score_rows(forward, rows, device)
        seconds = watch.seconds
        if seconds < _SHORT_SECONDS:
            with Stopwatch(device) as watch:
                score_rows(forward, rows, device)
        scored.append((logits_NC, min(seconds, watch.seconds)))
    del teacher, forward
    release(device)
    student = product.load_student(scene.models, scene.dtype, scene.options.seed)
    for rows, (logits_NC, seconds) in zip(samples, scored, strict=True):
        trained = _steps(scene, engine, student, rows, BATCH_ROWS, logits_NC)
        yield float(len(rows)), Steady(seconds + len(rows) / BATCH_ROWS * trained.seconds, trained.slowest)
    del student
    release(device)


def _batch_sizes(scene: Scene, engine: product.Engine, student: "PeftModel") -> Iterator[Point]:
    """(rows of a step, its seconds), each row of the mean length."""
    plan = scene.effort.growth
    for size in plan.batch_sizes:
        rows = _equal_rows(scene, (plan.warm_up + plan.steps) * size, MEAN_TOKENS)
        yield float(size), _steps(scene, engine, student, rows, size)


def _lengths(scene: Scene, engine: product.Engine, student: "PeftModel") -> Iterator[Point]:
    """(tokens of each row, seconds of a step)."""
    plan = scene.effort.growth
    for length in plan.lengths:
        rows = _equal_rows(scene, (plan.warm_up + plan.steps) * plan.length_rows, length)
        yield float(length), _steps(scene, engine, student, rows, plan.length_rows)


def _students(scene: Scene, engine: product.Engine) -> Iterator[Point]:
    """(weights of the linear layers, seconds of a step) of students with more and more layers."""
    plan = scene.effort.growth
    rows = _equal_rows(scene, (plan.warm_up + plan.steps) * BATCH_ROWS, MEAN_TOKENS)
    for layers in plan.layers:
        student = product.load_student(scene.models, scene.dtype, scene.options.seed, layers)
        weights = product_parameters(scene.models.student_config(layers))
        yield float(weights), _steps(scene, engine, student, rows, BATCH_ROWS)
        del student
        release(scene.device)


def _equal_rows(scene: Scene, count: int, length: int) -> "TokenRows":
    return equal_rows(count, length, scene.models.teacher_config().vocab_size, scene.options.seed)


def _steps(
    scene: Scene,
    engine: product.Engine,
    student: "PeftModel",
    rows: "TokenRows",
    batch_rows: int,
    logits_NC: torch.Tensor | None = None,
) -> Steady:
    """Usual seconds of a step over all rows; without the teacher's logits the targets are drawn."""
    device, plan = scene.device, scene.effort.growth
    draw = np.random.Generator(np.random.PCG64(scene.options.seed))
    labels_N = torch.from_numpy(draw.integers(0, 2, len(rows), dtype=np.int64)).to(device)
    if logits_NC is None:
        logits_NC = torch.from_numpy(draw.standard_normal((len(rows), 2), dtype=np.float32))
    trained = product.timed_training(
        student,
        rows,
        product.objective(labels_N, logits_NC.to(device)),
        engine,
        device,
        warm_up=plan.warm_up,
        log_every=plan.warm_up,
        seed=scene.options.seed,
        batch_rows=batch_rows,
    )
    release(device)
    return trained.per_step
