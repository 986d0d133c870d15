"""The rows that every variant sees: real text where the models read some, else random tokens of real lengths.

Shapes: N rows, T tokens. The epoch that is costed is SST-2's: 67,349 rows, batches of 16, the 872 validation rows
after every 1,000 steps and at the end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from llm_neo.batching import TokenRows, encode, epoch_order
from llm_neo.evaluate import select_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

BATCH_ROWS = 16
MAX_TOKENS = 128
MEAN_TOKENS = 13
LONGEST_SYNTHETIC = 64


@dataclass(frozen=True)
class Epoch:
    """What is costed, whatever part of it is run.

    Attributes:
        rows: training rows.
        validation_rows: rows of one evaluation.
        evaluate_every: steps between two evaluations.
    """

    rows: int = 67_349
    validation_rows: int = 872
    evaluate_every: int = 1_000

    @property
    def steps(self) -> int:
        """Optimizer steps; the last one may be short."""
        return math.ceil(self.rows / BATCH_ROWS)

    @property
    def evaluations(self) -> int:
        """One after every `evaluate_every` steps but the last, and one at the end."""
        return (self.steps - 1) // self.evaluate_every + 1


TOY_EPOCH = Epoch(rows=1024, validation_rows=64, evaluate_every=16)


@dataclass(frozen=True)
class Workload:
    """Rows, with what the epoch they stand for amounts to.

    Attributes:
        epoch: what is costed.
        rows: training rows; the epoch has their mean length.
        validation: rows of one evaluation.
        labels: int64, the class of each training row, (N,); drawn, since no time depends on them.
        source: where rows or lengths are from, as a phrase.
    """

    epoch: Epoch
    rows: TokenRows
    validation: TokenRows
    labels: "NDArray[np.int64]"
    source: str

    @property
    def whole(self) -> bool:
        """Whether the rows are as many as the epoch's."""
        return len(self.rows) == self.epoch.rows

    @property
    def training_tokens(self) -> float:
        """Real tokens of the epoch, no padding."""
        return float(self.rows.lengths.mean()) * self.epoch.rows

    @property
    def tokens_per_step(self) -> float:
        """Real tokens of a mean step."""
        return self.training_tokens / self.epoch.steps

    @property
    def scored_tokens(self) -> float:
        """Real tokens that a teacher must see who sees equal rows once, validation included."""
        distinct = sum(len(tokens) for tokens in {self.rows[row].tobytes() for row in range(len(self.rows))})
        per_row = distinct / self.rows.tokens.itemsize / len(self.rows)
        return per_row * self.epoch.rows + int(self.validation.lengths.sum())

    def sample(self, count: int) -> "NDArray[np.int64]":
        """`count` rows whose lengths are spread as those of all, in their order in the split."""
        return np.sort(spread(self.rows.lengths, min(count, len(self.rows))))

    def typical_batches(self, count: int, padded_to: int | None, seed: int) -> list["NDArray[np.int64]"]:
        """`count` batches of a shuffled epoch, their padded sizes spread as those of all its batches, by size.

        Args:
            count: how many.
            padded_to: tokens a row is padded to; None = the longest of the batch.
            seed: of the shuffling.
        """
        order = epoch_order(len(self.rows), seed, 0)
        batches = order[: len(order) // BATCH_ROWS * BATCH_ROWS].reshape(-1, BATCH_ROWS)
        if padded_to is not None:
            return [batches[index % len(batches)] for index in range(count)]
        chosen = spread(self.rows.lengths[batches].max(axis=1), min(count, len(batches)))
        return list(batches[np.resize(chosen, count)])


def spread(sizes: "NDArray[np.int64]", count: int) -> "NDArray[np.int64]":
    """`count` places whose sizes are the middles of equally many equal parts of the sorted sizes, (count,)."""
    places = ((np.arange(count) + 0.5) / count * len(sizes)).astype(np.int64)
    return np.argsort(sizes, kind="stable")[places]


def balanced_blocks(batches: Sequence["NDArray[np.int64]"], blocks: int) -> list[list["NDArray[np.int64]"]]:
    """Batches sorted by size dealt to and fro, so that every block has small and large ones alike.

    Args:
        batches: in the order of their size.
        blocks: how many, at most one a batch.
    """
    blocks = min(blocks, len(batches))
    dealt: list[list[NDArray[np.int64]]] = [[] for _ in range(blocks)]
    for place, batch in enumerate(batches):
        turn, seat = divmod(place, blocks)
        dealt[seat if turn % 2 == 0 else blocks - 1 - seat].append(batch)
    return dealt


def text_workload(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", epoch: Epoch, source: str, seed: int
) -> Workload:
    """The workload of real texts.

    Raises:
        InputError: a text that gives no token.
    """
    rows = encode(tokenizer, [str(row) for row in range(len(texts))], [(text,) for text in texts], MAX_TOKENS)
    return _workload(rows, epoch, source, seed)


def random_workload(lengths: "NDArray[np.int64]", vocabulary: int, epoch: Epoch, source: str, seed: int) -> Workload:
    """The workload of random tokens: id 0 begins a row, the vocabulary's last id (padding) never occurs.

    Args:
        lengths: tokens of each row, (N,).
        vocabulary: of the models.
        epoch: what is costed.
        source: where the lengths are from.
        seed: of the tokens.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.random.Generator(np.random.PCG64(seed)).integers(1, vocabulary - 1, offsets[-1], dtype=np.int64)
    tokens[offsets[:-1]] = 0
    rows = TokenRows(tuple(str(row) for row in range(len(lengths))), tokens, offsets)
    return _workload(rows, epoch, source, seed)


def word_workload(
    texts: Sequence[str], lengths: "NDArray[np.int64]", vocabulary: int, epoch: Epoch, source: str, seed: int
) -> Workload:
    """The workload of texts that begin alike where they do, for a vocabulary whose tokenizer is not at hand.

    A word is one token, the same wherever it stands; a row is cut to its length, or filled up to it with random tokens
    at its end, which no other row shares.

    Args:
        texts: of the rows.
        lengths: tokens of each row, (N,).
        vocabulary: of the models.
        epoch: what is costed.
        source: where texts and lengths are from.
        seed: of the tokens at the ends.
    """
    workload = random_workload(lengths, vocabulary, epoch, source, seed)
    tokens, offsets = workload.rows.tokens.copy(), workload.rows.offsets
    for start, end, text in zip(offsets[:-1], offsets[1:], texts, strict=True):
        words = text.split()[: end - start - 1]
        tokens[start + 1 : start + 1 + len(words)] = [1 + crc32(word.encode()) % (vocabulary - 2) for word in words]
    return _workload(TokenRows(workload.rows.ids, tokens, offsets), epoch, source, seed)


def equal_rows(count: int, length: int, vocabulary: int, seed: int) -> TokenRows:
    """`count` rows of `length` random tokens each."""
    lengths = np.full(count, length, np.int64)
    return random_workload(lengths, vocabulary, Epoch(validation_rows=1), "equal lengths", seed).rows


def _workload(rows: TokenRows, epoch: Epoch, source: str, seed: int) -> Workload:
    """Validation: SST-2 trains on phrases and validates on whole sentences, so the longest quarter stands for them."""
    by_length = np.argsort(rows.lengths, kind="stable")
    longest = by_length[len(by_length) * 3 // 4 :]
    place = np.linspace(0, len(longest) - 1, epoch.validation_rows).astype(np.int64)
    validation = select_rows(rows, np.sort(longest[place]))
    labels = np.random.Generator(np.random.PCG64(seed)).integers(0, 2, len(rows), dtype=np.int64)
    return Workload(epoch, rows, validation, labels, source)


def read_lengths(file: Path) -> "NDArray[np.int64]":
    """Token counts from a file of one whole number a line, those above the longest text cut, (N,)."""
    return np.minimum(np.loadtxt(file, dtype=np.int64, ndmin=1), MAX_TOKENS)


def synthetic_lengths(count: int, seed: int) -> "NDArray[np.int64]":
    """Token counts of SST-2's shape: two at least, most of them short, 13 on average, (count,)."""
    draw = np.random.Generator(np.random.PCG64(seed)).geometric(1 / (MEAN_TOKENS - 1), count)
    return np.minimum(draw + 1, LONGEST_SYNTHETIC).astype(np.int64)
