"""Texts as tokens, and batches of them without padding.

Shapes: N texts of a split, T tokens, B texts of a batch, R rows of a batch as the model sees it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from llm_neo.errors import InputError
from llm_neo.models.attention import Segments

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenRows:
    """The tokens of N texts, end to end.

    Attributes:
        ids: the row id of each text.
        tokens: int64 token ids, (sum of lengths,).
        offsets: int64, (N + 1,): text i is `tokens[offsets[i]:offsets[i + 1]]`.
        truncated: how many texts were longer than the limit and lost their end.
    """

    ids: tuple[str, ...]
    tokens: "NDArray[np.int64]"
    offsets: "NDArray[np.int64]"
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> "NDArray[np.int64]":
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> "NDArray[np.int64]":
        """Tokens of each text, (N,)."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Batch:
    """B texts as one input of the model; tensors lie on one device.

    Attributes:
        input_ids: (R, T) int64.
        position_ids: (R, T) int64, each token's place in its own text; None = one whole text a row.
        segments: which tokens belong to one text (R = 1); None = one whole text a row.
        last_token: (B,) int64, each text's last token in the R * T flattened ones.
        rows: (B,) int64, which text of the split each is.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor | None
    segments: Segments | None
    last_token: torch.Tensor
    rows: torch.Tensor

    @property
    def tokens(self) -> int:
        """Tokens in the batch; none of them is padding."""
        return self.input_ids.numel()

    def attention_mask(self) -> torch.Tensor | None:
        """Block-diagonal causal mask, (1, 1, T, T) booleans: a token sees its own text up to itself."""
        if self.segments is None:
            return None
        if self.segments.key_index is not None:
            raise ValueError("texts that share tokens have no block-diagonal mask; score them by models.fused")
        place_T = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        segment_T = torch.bucketize(place_T, self.segments.query_starts[1:], right=True)
        same_text = segment_T[:, None] == segment_T[None, :]
        return (same_text & (place_T[:, None] >= place_T[None, :]))[None, None]

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`."""
        positions = self.position_ids
        return Batch(
            input_ids=self.input_ids.to(device, non_blocking=True),
            position_ids=None if positions is None else positions.to(device, non_blocking=True),
            segments=None if self.segments is None else self.segments.to(device),
            last_token=self.last_token.to(device, non_blocking=True),
            rows=self.rows.to(device, non_blocking=True),
        )


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    ids: Sequence[str],
    texts: Sequence[tuple[str, ...]],
    max_length_tokens: int,
) -> TokenRows:
    """Tokenise texts or pairs of texts; special tokens come from the tokenizer alone, final padding is left out.

    Args:
        tokenizer: the saved tokenizer of the model that will read the tokens.
        ids: the row id of each text.
        texts: one or two strings each.
        max_length_tokens: longer texts lose their end (of a pair: the longer part first).

    Raises:
        InputError: a text that gives no token at all.
    """
    if not texts:
        return TokenRows((), np.zeros(0, np.int64), np.zeros(1, np.int64))
    columns = [list(column) for column in zip(*texts, strict=True)]
    encoded = tokenizer(*columns, add_special_tokens=True, return_attention_mask=False, verbose=False)["input_ids"]
    long = [row for row, tokens in enumerate(encoded) if len(tokens) > max_length_tokens]
    if long:
        cut = tokenizer(
            *[[column[row] for row in long] for column in columns],
            truncation="longest_first",
            max_length=max_length_tokens,
            return_attention_mask=False,
        )["input_ids"]
        for row, tokens in zip(long, cut, strict=True):
            encoded[row] = tokens
    _drop_final_padding(encoded, getattr(tokenizer, "pad_token_id", None))
    lengths = np.array([len(tokens) for tokens in encoded], np.int64)
    if (lengths == 0).any():
        row = int(np.argmin(lengths))
        raise InputError(f"row {ids[row]}: the text {texts[row]!r:.60} gives no token; remove the row")
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenRows(tuple(ids), np.concatenate(encoded).astype(np.int64), offsets, truncated=len(long))


def _drop_final_padding(encoded: list[list[int]], pad: int | None) -> None:
    """Take away, in place, final tokens that are the padding token.

    The classifiers of transformers answer from the last token that is no padding. Where the padding token is the end of
    text and the tokenizer ends texts with it, that is the token before; what follows it changes nothing.
    """
    for tokens in encoded:
        while len(tokens) > 1 and tokens[-1] == pad:
            tokens.pop()


def packed_batch(rows: TokenRows, chosen: "NDArray[np.int64]") -> Batch:
    """The chosen texts end to end in one row of T tokens: `input_ids` (1, T), no padding.

    Args:
        rows: the tokens of a split.
        chosen: (B,) which texts, in this order.
    """
    lengths = rows.lengths[chosen]
    starts = np.cumsum(lengths) - lengths
    segment = np.repeat(np.arange(len(chosen)), lengths)
    position = np.arange(len(segment)) - starts[segment]
    tokens = rows.tokens[rows.offsets[chosen][segment] + position]
    edges = torch.from_numpy(np.concatenate([starts, [len(segment)]]).astype(np.int32))
    return Batch(
        input_ids=torch.from_numpy(tokens)[None],
        position_ids=torch.from_numpy(position)[None],
        segments=Segments(edges, edges, int(lengths.max()), int(lengths.max())),
        last_token=torch.from_numpy(starts + lengths - 1),
        rows=torch.from_numpy(np.ascontiguousarray(chosen)),
    )


def equal_length_batches(rows: TokenRows, max_tokens: int) -> Iterator[Batch]:
    """All texts, each batch of one length (B, T), at most `max_tokens` tokens each: causal, so without any mask.

    Longest first: what does not fit in memory shows at once.
    """
    lengths = rows.lengths
    for length in np.unique(lengths)[::-1]:
        same = np.flatnonzero(lengths == length)
        size = max(1, max_tokens // int(length))
        for start in range(0, len(same), size):
            chosen = same[start : start + size]
            tokens = rows.tokens[rows.offsets[chosen][:, None] + np.arange(length)[None, :]]
            last = np.arange(1, len(chosen) + 1) * length - 1
            yield Batch(torch.from_numpy(tokens), None, None, torch.from_numpy(last), torch.from_numpy(chosen))


def epoch_order(rows: int, seed: int, epoch: int) -> "NDArray[np.int64]":
    """The shuffled order of one epoch, (rows,): the same for the same seed and epoch on every machine."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(rows).astype(np.int64)
