"""Batches of texts that begin alike: what several texts begin with is computed once, exactly.

Under causal attention a token's hidden state depends on nothing but the tokens up to it, so texts are the paths of a
tree whose every node is one token to compute. Each text is a segment: its queries are its new tokens, those after what
it shares with the text before it; its keys are its whole path, looked up among the batch's tokens.

Shapes: N texts of a split, B texts of a batch, T tokens that a batch computes, K keys of all its texts end to end.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from llm_neo.batching import Batch, TokenRows
from llm_neo.models.attention import Segments

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEYS_PER_TOKEN = 4
"""A batch has at most this many keys for each token of its budget: keys are gathered, so they take memory too."""

PARTED_BELOW = 1 / 6
"""Neighbours that share no more than this part of the longer one may be parted, so that lengths come together.

On SST-2 with SmolLM2's tokenizer 64 % of the tokens are computed (62 % if none are parted), in padded rectangles
a quarter the size.
"""


def tree_tokens(rows: TokenRows) -> int:
    """How many different beginnings N texts have, each text itself included: the nodes of their prefix tree."""
    order = _lexicographic(rows)
    return int(rows.lengths.sum() - _shared(rows, order).sum())


def tree_batches(rows: TokenRows, max_tokens: int) -> Iterator[Batch]:
    """All texts, each batch with `input_ids` (1, T): at most `max_tokens` of them, but for a longer text alone.

    Texts that begin alike are neighbours; groups of them come longest first, so that the segments of a batch have
    similar lengths and what does not fit in memory shows soon. A text that begins a batch is computed from its start.

    Args:
        rows: the tokens of N texts; for equal texts nothing but the last token is computed again.
        max_tokens: T of a batch; it also has at most `KEYS_PER_TOKEN` times as many keys.
    """
    order = _long_groups_first(rows, _lexicographic(rows))
    lengths = rows.lengths[order]
    # A text's own last token is always new: it is the query whose answer is pooled.
    shared = np.minimum(_shared(rows, order), lengths - 1)
    tokens_before = np.concatenate([[0], np.cumsum(lengths - shared)])
    keys_before = np.concatenate([[0], np.cumsum(lengths)])
    start = 0
    while start < len(order):
        token_limit = tokens_before[start] - shared[start] + max_tokens
        key_limit = keys_before[start] + KEYS_PER_TOKEN * max_tokens
        end = min(
            np.searchsorted(tokens_before, token_limit, "right"), np.searchsorted(keys_before, key_limit, "right")
        )
        end = max(start + 1, int(end) - 1)
        yield _batch(rows, order[start:end], np.concatenate([[0], shared[start + 1 : end]]))
        start = end


def _lexicographic(rows: TokenRows) -> "NDArray[np.int64]":
    """The texts in the order of their token ids, a beginning before what it begins, (N,)."""
    # Bytes of big-endian numbers compare like the numbers.
    tokens = rows.tokens.astype(">u4").tobytes()
    keys = [tokens[start:end] for start, end in pairwise((4 * rows.offsets).tolist())]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def _shared(rows: TokenRows, order: "NDArray[np.int64]") -> "NDArray[np.int64]":
    """How many first tokens each text has in common with the one before it in `order`, (N,); of the first one 0."""
    starts, lengths = rows.offsets[order], rows.lengths[order]
    both = np.minimum(lengths[1:], lengths[:-1])
    begin = np.cumsum(both) - both
    place = np.arange(both.sum()) - np.repeat(begin, both)
    mine, before = (rows.tokens[np.repeat(first, both) + place] for first in (starts[1:], starts[:-1]))
    differs = np.append(np.flatnonzero(mine != before), len(place))
    shared = np.minimum(differs[np.searchsorted(differs, begin)] - begin, both)
    return np.concatenate([np.zeros(min(1, len(order)), np.int64), shared])


def _long_groups_first(rows: TokenRows, order: "NDArray[np.int64]") -> "NDArray[np.int64]":
    """The same order, cut where neighbours share too little to matter, the groups sorted by their longest text."""
    if not len(order):
        return order
    lengths = rows.lengths[order]
    longer = np.maximum(lengths, np.concatenate([[0], lengths[:-1]]))
    is_first = _shared(rows, order) <= PARTED_BELOW * longer
    longest = np.maximum.reduceat(lengths, np.flatnonzero(is_first))
    return order[np.argsort(-longest[np.cumsum(is_first) - 1], kind="stable")]


def _batch(rows: TokenRows, chosen: "NDArray[np.int64]", shared: "NDArray[np.int64]") -> Batch:
    """The tokens of some texts that none of them has computed before, and each text's path through them.

    Args:
        rows: the tokens of a split.
        chosen: (B,) which texts, in this order.
        shared: (B,) first tokens that each has in common with the one before it; fewer than it has.
    """
    lengths = rows.lengths[chosen]
    starts = np.cumsum(lengths) - lengths
    text = np.repeat(np.arange(len(chosen)), lengths)
    depth = np.arange(len(text)) - starts[text]
    is_new = depth >= shared[text]
    # Of the keys of one depth, each is the last new one up to it; the first one of a depth is always new.
    by_depth = np.argsort(depth, kind="stable")
    latest = np.maximum.accumulate(np.where(is_new[by_depth], np.arange(len(text)), 0))
    key_index = np.empty(len(text), np.int64)
    key_index[by_depth] = (np.cumsum(is_new) - 1)[by_depth][latest]
    ends = np.cumsum(lengths - shared)
    query_starts = _edges(ends)
    segments = Segments(
        query_starts=query_starts,
        key_starts=_edges(np.cumsum(lengths)) if shared.any() else query_starts,
        longest_query=int((lengths - shared).max()),
        longest_key=int(lengths.max()),
        key_index=torch.from_numpy(key_index) if shared.any() else None,
    )
    return Batch(
        input_ids=torch.from_numpy(rows.tokens[rows.offsets[chosen][text] + depth][is_new])[None],
        position_ids=torch.from_numpy(depth[is_new])[None],
        segments=segments,
        last_token=torch.from_numpy(ends - 1),
        rows=torch.from_numpy(np.ascontiguousarray(chosen)),
    )


def _edges(ends: "NDArray[np.int64]") -> torch.Tensor:
    """int32 (B + 1,): 0 and where each of B segments ends."""
    return torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32))
