"""What was measured of a variant, and the line of `bench.json` that it gives."""

from dataclasses import dataclass
from typing import Any

from benchmarks.clock import Steady
from benchmarks.setting import Setting
from benchmarks.variants import VARIANTS
from benchmarks.workload import Workload

Record = dict[str, Any]
"""A variant's line of `bench.json`; `benchmarks/README.md` says what the keys mean."""


@dataclass(frozen=True)
class Work:
    """What the real tokens of a variant cost in matrix products, each of which is two FLOP a weight and token.

    Attributes:
        teacher_parameters: P of the teacher.
        student_parameters: P of the student.
        passes: products of a training step for each weight: 2 with frozen weights (forward, and backward towards the
            inputs), 3 where all weights learn.
        teacher_inline: the teacher answers in every step.
    """

    teacher_parameters: int
    student_parameters: int
    passes: int = 2
    teacher_inline: bool = False

    def step(self, tokens: float) -> float:
        """FLOP of training steps over so many tokens."""
        inline = 2 * self.teacher_parameters if self.teacher_inline else 0
        return (2 * self.passes * self.student_parameters + inline) * tokens

    def scoring(self, tokens: float) -> float:
        """FLOP of the teacher's answers."""
        return 2 * self.teacher_parameters * tokens

    def evaluation(self, tokens: float) -> float:
        """FLOP of the student's answers."""
        return 2 * self.student_parameters * tokens


@dataclass(frozen=True)
class Measured:
    """Times and memory of one variant.

    Attributes:
        work: what its tokens cost.
        per_step: steady.
        steps_timed: steps behind it.
        evaluation_seconds: one evaluation.
        scoring_seconds: all rows of the epoch, scored once; 0 where the teacher answers inline.
        start_seconds: what the first batches took more than later ones (compiling, capturing), where no other figure
            holds it; 0 for the baselines, whose warm-up is left out in their favour.
        training_seconds: a whole epoch that was run, with its evaluations but the last; None = some steps were run.
        extrapolated: what the epoch is made of was run only in part.
        stage_peaks: most device bytes by stage.
        host_peak: most resident bytes.
        engine: of LLM-Neo, that took the steps; None for a baseline.
    """

    work: Work
    per_step: Steady
    steps_timed: int
    evaluation_seconds: float
    scoring_seconds: float
    start_seconds: float
    training_seconds: float | None
    extrapolated: bool
    stage_peaks: dict[str, int]
    host_peak: int
    engine: str | None


def record(variant: str, measured: Measured, workload: Workload, setting: Setting) -> Record:
    """The variant's line; its ratio to variant b is added once all are known."""
    epoch, work, rate = workload.epoch, measured.work, setting.matmul_rate
    evaluations = epoch.evaluations * measured.evaluation_seconds
    per_step = measured.per_step.seconds
    training = epoch.steps * per_step + evaluations
    if measured.training_seconds is not None:
        training = measured.training_seconds + measured.evaluation_seconds
    seconds = measured.scoring_seconds + measured.start_seconds + training
    scored = workload.scored_tokens if measured.scoring_seconds else 0.0
    judged = float(epoch.evaluations * workload.validation.lengths.sum())
    total = work.step(workload.training_tokens) + work.scoring(scored) + work.evaluation(judged)
    return {
        "variant": variant,
        "what": VARIANTS[variant],
        "device": setting.device,
        "seconds_per_epoch": seconds,
        "seconds_per_step": per_step,
        "tokens_per_second": workload.training_tokens / seconds,
        "matmul_share": total / seconds / rate,
        "peak_device_bytes": max(measured.stage_peaks.values()),
        "peak_host_bytes": measured.host_peak,
        "ratio_to_b": None,
        "extrapolated": measured.extrapolated,
        "engine": measured.engine,
        "steps_timed": measured.steps_timed,
        "slowest_block": measured.per_step.slowest,
        "steps_per_epoch": epoch.steps,
        "scoring_seconds": measured.scoring_seconds,
        "scoring_tokens_per_second": scored / measured.scoring_seconds if scored else None,
        "scoring_matmul_share": work.scoring(scored) / measured.scoring_seconds / rate if scored else None,
        "step_matmul_share": work.step(workload.tokens_per_step) / per_step / rate,
        "evaluation_seconds": evaluations,
        "start_seconds": measured.start_seconds,
        "peak_device_bytes_by_stage": measured.stage_peaks,
        "matmul_flop_per_second": rate,
        "precision": setting.precision,
        "models": setting.models,
        "rows": workload.source,
        "versions": setting.versions,
    }
