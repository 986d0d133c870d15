"""A teacher over rows, shard by shard: what is scored is kept, whenever the run ends.

Shapes: N rows, C classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from llm_neo.data import Row
from llm_neo.progress import Bar, Progress
from llm_neo.targets import TargetStore
from llm_neo.teacher import Teacher

ROWS_PER_SHARD = {"cpu": 2048, "cuda": 16384}
"""Some seconds of scoring, with 135M weights on two cores as with 8B weights on an H100."""


def shards_of(rows: Sequence[Row], rows_per_shard: int) -> list[list[Row]]:
    """The rows in shards of neighbours by text, so that what begins alike stays together for the prefix tree.

    On SST-2 with SmolLM2's tokenizer shards of 2,048 rows compute 0.1 % more tokens than all rows at once.
    """
    ordered = sorted(rows, key=lambda row: row.text)
    return [ordered[start : start + rows_per_shard] for start in range(0, len(ordered), rows_per_shard)]


def score_shards(
    teacher: Teacher, shards: Mapping[int, Sequence[Row]], store: TargetStore, progress: Progress
) -> dict[str, torch.Tensor]:
    """Logits (C,) of every row of some shards, by row id; those that are on disk are not scored again.

    Args:
        teacher: the model.
        shards: rows of each, by its number in the store.
        store: keeps them.
        progress: shows a bar.

    Raises:
        InputError: a shard on disk is damaged; it is named.
        NonFiniteError: a logit is NaN or infinite; the row is named.
        ResourceError: not even one text fits in memory, or the disk is full.
    """
    known = {number: store.read(number) for number in shards}
    found = sum(logits is not None for logits in known.values())
    if found:
        progress.say(f"teacher targets: {found} of {len(shards)} shards are scored already")
    answers: dict[str, torch.Tensor] = {}
    with progress.bar("teacher scores", sum(map(len, shards.values())), "rows") as bar:
        for number, rows in shards.items():
            part, logits_NC = _Part(bar, len(rows)), known[number]
            if logits_NC is None:
                logits_NC = teacher.score([row.id for row in rows], [row.text for row in rows], part)
                store.write(number, logits_NC)
            part.end()
            answers |= dict(zip((row.id for row in rows), logits_NC, strict=True))
    return answers


@dataclass
class _Part:
    """A `Progress` whose bars count within one shard of another bar, which must come out at its rows.

    A scoring counts different texts, once for each label word of several tokens; the rows may be more or fewer.
    """

    whole: Bar
    left: int

    def stage(self, name: str) -> None:
        """Pass over."""

    def say(self, message: str) -> None:
        """Pass over."""

    @contextmanager
    def bar(self, label: str, total: int | None, unit: str) -> Iterator[Bar]:
        """See `Progress`."""
        yield self

    def advance(self, amount: int = 1, **figures: float) -> None:
        """See `Bar`."""
        counted = min(amount, self.left)
        self.left -= counted
        self.whole.advance(counted, **figures)

    def end(self) -> None:
        """Count what is left."""
        self.advance(self.left)
