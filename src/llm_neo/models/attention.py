"""Causal attention of texts that lie end to end: no linear layer computes padding, and no text sees another.

Shapes: S segments, Q queries and K keys of all segments end to end, T tokens, Lq and Lk the most queries and keys of a
segment, H heads of queries, G heads of keys and values (H is a multiple of G), D the width of a head.
"""

import inspect
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch


@dataclass(frozen=True)
class Segments:
    """Which keys a query may look at: those of its own segment, up to its own place.

    A segment's queries are its last tokens, so its last query sees all of its keys.

    Attributes:
        query_starts: (S + 1,) int32, where each segment's queries begin; the last entry is Q.
        key_starts: (S + 1,) int32, the same of its keys; the last entry is K.
        longest_query: no segment has more queries.
        longest_key: no segment has more keys.
        key_index: (K,) int64, which token each key is, where segments share keys; None = the tokens in their order.
    """

    query_starts: torch.Tensor
    key_starts: torch.Tensor
    longest_query: int
    longest_key: int
    key_index: torch.Tensor | None = None

    def last_queries(self) -> "Segments":
        """The same segments with nothing but the last query of each."""
        starts = torch.arange(len(self.query_starts), dtype=torch.int32, device=self.query_starts.device)
        return Segments(starts, self.key_starts, 1, self.longest_key, self.key_index)

    def to(self, device: torch.device) -> "Segments":
        """The same segments with their tensors on `device`."""
        index = None if self.key_index is None else self.key_index.to(device, non_blocking=True)
        query_starts = self.query_starts.to(device, non_blocking=True)
        same = self.key_starts is self.query_starts
        key_starts = query_starts if same else self.key_starts.to(device, non_blocking=True)
        return Segments(query_starts, key_starts, self.longest_query, self.longest_key, index)


class PackedAttention:
    """Attention over some segments, its geometry worked out once for all layers of a model.

    On CUDA in half precision a packed kernel: `models.short_attention`, or PyTorch's flash for long texts. Elsewhere
    each segment is a row of a padded rectangle and the products are plain batched ones, which at the lengths of
    sentences is faster on a CPU than its flash kernel.
    """

    def __init__(self, segments: Segments, queries: int, keys: int, *, packed_kernel: bool) -> None:
        """Prepare for `queries` = Q and `keys` = K; `packed_kernel` as `has_packed_kernel` says."""
        self._segments = segments
        self._packed = packed_kernel
        self._short = packed_kernel and max(segments.longest_query, segments.longest_key) <= _longest_short()
        self._masks: dict[torch.dtype, torch.Tensor] = {}
        if not packed_kernel:
            self._places = _places(segments, queries, keys)

    def __call__(self, q_QHD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor, scale: float) -> torch.Tensor:
        """Attention outputs, (Q, H, D)."""
        index = self._segments.key_index
        if self._packed:
            k_KGD, v_KGD = (k_TGD, v_TGD) if index is None else (k_TGD[index], v_TGD[index])
            if self._short:
                return _short(q_QHD, k_KGD, v_KGD, self._segments, scale)
            return _varlen(q_QHD, k_KGD, v_KGD, self._segments, scale)
        return self._padded(q_QHD, k_TGD, v_TGD, scale)

    def _hidden(self, dtype: torch.dtype) -> torch.Tensor:
        """What is added to the scores, (S, 1, 1, Lq, Lk); made once for all layers."""
        if dtype not in self._masks:
            self._masks[dtype] = self._places.hidden[:, :, None].to(dtype)
        return self._masks[dtype]

    def _padded(self, q_QHD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor, scale: float) -> torch.Tensor:
        places, (_, heads, width) = self._places, q_QHD.shape
        segments, groups = len(self._segments.query_starts) - 1, k_TGD.shape[1]
        shared = heads // groups
        q = _regroup(q_QHD, places.queries, places.of_query)
        k = _regroup(k_TGD, places.keys, places.of_key)
        v = _regroup(v_TGD, places.keys, places.of_key)
        # (S, L, G, h, D) -> (S, G, h * L, D): the query heads of one key head are rows of one product.
        q = q.view(segments, -1, groups, shared, width).permute(0, 2, 3, 1, 4).reshape(segments, groups, -1, width)
        k = k.view(segments, -1, groups, width).permute(0, 2, 3, 1)
        v = v.view(segments, -1, groups, width).transpose(1, 2)
        scores = (q * scale) @ k
        masked = scores.view(segments, groups, shared, -1, scores.shape[-1]) + self._hidden(scores.dtype)
        weights = torch.softmax(masked, dim=-1)
        out = weights.view_as(scores) @ v
        out = out.view(segments, groups, shared, -1, width).permute(0, 3, 1, 2, 4).reshape(-1, heads, width)
        return _regroup(out, places.of_query, places.queries_back)


@dataclass(frozen=True)
class _Places:
    """Where the tokens of segments lie in a padded rectangle.

    Attributes:
        queries: (S * Lq,) int64, the query in each place; the segment's first where there is none.
        keys: (S * Lk,) int64, the token in each place of the keys.
        of_query: (Q,) int64, the place of each query.
        of_key: (T,) int64, the place of each token as a key; None where segments share keys.
        queries_back: (S * Lq,) int64, `queries`, and Q (a row of zeros) where there is none.
        hidden: (S, 1, Lq, Lk), 0 where a query may look and -inf where not.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    of_query: torch.Tensor
    of_key: torch.Tensor | None
    queries_back: torch.Tensor
    hidden: torch.Tensor


def _places(segments: Segments, queries: int, keys: int) -> _Places:
    """The rectangle; no shape depends on a tensor's value, so that a graph can capture this."""
    index_q, of_query, count_q, there_q = _rectangle(segments.query_starts, segments.longest_query, queries)
    index_k, of_key, count_k, _ = _rectangle(segments.key_starts, segments.longest_key, keys)
    place_q = torch.arange(segments.longest_query, device=index_q.device)
    place_k = torch.arange(segments.longest_key, device=index_q.device)
    # Query i of n is its segment's key number (keys - n + i).
    limit = (count_k - count_q)[:, None] + place_q[None, :]
    hidden = torch.where(place_k[None, None, :] > limit[:, :, None], float("-inf"), 0.0)
    shared = segments.key_index is not None
    return _Places(
        queries=index_q,
        keys=segments.key_index[index_k] if segments.key_index is not None else index_k,
        of_query=of_query,
        of_key=None if shared else of_key,
        queries_back=torch.where(there_q, index_q, queries),
        hidden=hidden[:, None],
    )


def _rectangle(
    starts: torch.Tensor, longest: int, tokens: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(S * longest,) token of each place, (tokens,) place of each token, (S,) counts, (S * longest,) is one there."""
    first, counts = starts[:-1].long(), starts.diff().long()
    place = torch.arange(longest, device=starts.device)
    there = place[None, :] < counts[:, None]
    index = torch.where(there, first[:, None] + place[None, :], first[:, None])
    token = torch.arange(tokens, device=starts.device)
    segment = torch.bucketize(token, starts[1:].long(), right=True)
    return index.flatten(), segment * longest + token - first[segment], counts, there.flatten()


def _regroup(rows: torch.Tensor, index: torch.Tensor, back: torch.Tensor | None) -> torch.Tensor:
    regrouped: torch.Tensor = _Regroup.apply(rows, index, back)  # type: ignore[no-untyped-call]
    return regrouped


class _Regroup(torch.autograd.Function):
    """Rows in another order, some more than once; its gradient is a lookup as well, where `index_select` sums."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, index: torch.Tensor, back: torch.Tensor | None) -> torch.Tensor:
        ctx.back, ctx.rows = back, len(index)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        if ctx.back is None:
            raise RuntimeError("segments that share keys can be scored but not trained on")
        if len(ctx.back) > ctx.rows:
            gradient = torch.cat([gradient, gradient.new_zeros((1, *gradient.shape[1:]))])
        return gradient.index_select(0, ctx.back), None, None


def has_packed_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch's packed flash kernel takes tensors of this device and dtype."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


@cache
def _longest_short() -> int:
    """Tokens of the longest segment for which `models.short_attention` has a kernel; 0 without Triton."""
    if find_spec("triton") is None:
        return 0
    from llm_neo.models.short_attention import LONGEST

    return LONGEST


def _short(
    q_QHD: torch.Tensor, k_KGD: torch.Tensor, v_KGD: torch.Tensor, segments: Segments, scale: float
) -> torch.Tensor:
    from llm_neo.models.short_attention import ShortAttention

    out: torch.Tensor = ShortAttention.apply(  # type: ignore[no-untyped-call]
        q_QHD, k_KGD, v_KGD, segments.query_starts, segments.key_starts, scale
    )
    return out


def _varlen(
    q_QHD: torch.Tensor, k_KGD: torch.Tensor, v_KGD: torch.Tensor, segments: Segments, scale: float
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in _varlen_options() else {"is_causal": True}
    if "enable_gqa" in _varlen_options():
        options["enable_gqa"] = k_KGD.shape[1] != q_QHD.shape[1]
    out: Any = varlen_attn(
        q_QHD,
        k_KGD,
        v_KGD,
        segments.query_starts,
        segments.key_starts,
        segments.longest_query,
        segments.longest_key,
        scale=scale,
        **options,
    )
    packed: torch.Tensor = out
    return packed


@cache
def _varlen_options() -> frozenset[str]:
    """The keyword arguments of this release's `varlen_attn`, which change from one to the next."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)
