"""How much is measured on which machine, so that the whole ends in minutes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Growth:
    """The points of the growth curves.

    Attributes:
        rows: of an epoch.
        batch_sizes: rows of a step, each of the mean length.
        lengths: tokens of each row of a step.
        length_rows: rows of such a step.
        layers: of the student.
        warm_up: steps before each measurement.
        steps: timed steps.
    """

    rows: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    lengths: tuple[int, ...]
    length_rows: int
    layers: tuple[int, ...]
    warm_up: int
    steps: int


@dataclass(frozen=True)
class Effort:
    """How much of an epoch is run.

    Attributes:
        warm_up: steps of a baseline before the timed ones.
        baseline_steps: timed steps of a baseline.
        neo_warm_up: steps of LLM-Neo before the timed ones, a multiple of `log_every`.
        neo_steps: timed steps of LLM-Neo.
        log_every: steps between two readings of LLM-Neo's loss.
        evaluation_batches: of an evaluation by a baseline; None = all.
        score_rows: rows that are scored; None = all.
        product_tokens: rows of the matrices whose product rate is measured.
        growth: points of the growth curves.
    """

    warm_up: int
    baseline_steps: int
    neo_warm_up: int
    neo_steps: int
    log_every: int
    evaluation_batches: int | None
    score_rows: int | None
    product_tokens: int
    growth: Growth


GPU = Effort(
    warm_up=5,
    baseline_steps=30,
    neo_warm_up=20,
    neo_steps=300,
    log_every=10,
    evaluation_batches=None,
    score_rows=None,
    product_tokens=16384,
    growth=Growth(
        rows=(1024, 2048, 4096, 8192, 16384, 32768, 65536),
        batch_sizes=(4, 8, 16, 32, 64, 128, 256, 512),
        lengths=(16, 32, 64, 128, 256, 512, 1024, 2048),
        length_rows=4,
        layers=(2, 4, 8, 16),
        warm_up=10,
        steps=20,
    ),
)
CPU = Effort(
    warm_up=2,
    baseline_steps=6,
    neo_warm_up=4,
    neo_steps=24,
    log_every=4,
    evaluation_batches=3,
    score_rows=2048,
    product_tokens=1024,
    growth=Growth(
        rows=(64, 128, 256, 512),
        batch_sizes=(4, 8, 16, 32),
        lengths=(16, 32, 64, 128, 256),
        length_rows=4,
        layers=(5, 10, 20, 30),
        warm_up=1,
        steps=5,
    ),
)
TOY = Effort(
    warm_up=2,
    baseline_steps=6,
    neo_warm_up=2,
    neo_steps=8,
    log_every=2,
    evaluation_batches=2,
    score_rows=None,
    product_tokens=1024,
    growth=Growth(
        rows=(32, 64, 128, 256),
        batch_sizes=(4, 8, 16, 32),
        lengths=(16, 32, 64, 128),
        length_rows=4,
        layers=(1, 2, 4),
        warm_up=1,
        steps=3,
    ),
)
