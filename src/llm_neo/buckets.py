"""A packed batch as one vector of fixed size, and back: what a CUDA graph reads, since its shapes cannot change.

Shapes: B texts of a micro-batch, T tokens of a bucket.
"""

import torch

from llm_neo.batching import Batch
from llm_neo.models.attention import Segments


def bucket(tokens: int) -> int:
    """The smallest bucket that holds `tokens`: multiples of 64 or of an eighth of the size, whichever is more."""
    step = _bucket_step(tokens)
    return -(-tokens // step) * step


def _bucket_step(tokens: int) -> int:
    return max(64, 1 << max(0, (tokens - 1).bit_length() - 4))


def padded(batch: Batch, tokens: int, rows: int, rows_of_step: int) -> torch.Tensor:
    """A packed batch as one vector of int32 in pinned memory, filled up to `tokens` tokens and `rows` texts.

    Each missing text is a segment of one token and what is left of the bucket is one more, so that no segment is empty.
    """
    assert batch.segments is not None and batch.position_ids is not None, "graphs take packed batches"
    there = len(batch.rows)
    values = torch.zeros(2 * tokens + 2 * rows + rows + 3, dtype=torch.int32, pin_memory=torch.cuda.is_available())
    ids, positions, starts, texts, present, total = values.split([tokens, tokens, rows + 2, rows, rows, 1])
    ids[: batch.tokens] = batch.input_ids[0]
    positions[: batch.tokens] = batch.position_ids[0]
    rest = batch.tokens + rows - there
    positions[rest:] = torch.arange(tokens - rest, dtype=torch.int32)
    starts[:there] = batch.segments.query_starts[:-1]
    starts[there : rows + 1] = torch.arange(batch.tokens, rest + 1, dtype=torch.int32)
    starts[rows + 1] = tokens
    # A missing text counts for nothing, but what it is compared with must be finite where this batch is.
    texts[:there], texts[there:] = batch.rows, batch.rows[0]
    present[:there] = 1
    total[0] = rows_of_step
    return values


def unpacked(
    inputs: torch.Tensor, tokens: int, rows: int, longest_text: int
) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """The batch, which of its texts are there (B,), and the rows of the whole step (a scalar), all on the device."""
    ids, positions, starts, texts, present, total = inputs.split([tokens, tokens, rows + 2, rows, rows, 1])
    longest = min(tokens, max(longest_text, _bucket_step(tokens)))
    batch = Batch(
        input_ids=ids[None],
        position_ids=positions[None],
        segments=Segments(starts, starts, longest, longest),
        last_token=starts[1:].long() - 1,
        rows=texts.long(),
    )
    return batch, present.bool(), total[0]
