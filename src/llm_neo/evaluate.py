"""A model over a split: every text once, and what several of them begin with once where the model allows it.

Shapes: N texts, C classes.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import torch

from llm_neo import tasks
from llm_neo.batching import Batch, TokenRows, equal_length_batches
from llm_neo.errors import NonFiniteError, ResourceError, is_out_of_memory
from llm_neo.models.fused import FusedClassifier, can_compile
from llm_neo.prefix_tree import tree_batches, tree_tokens
from llm_neo.progress import Progress, SilentProgress

TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 10240}
"""Where scoring is fastest: more tokens leave the caches of a CPU, fewer leave a GPU waiting for weights."""

EngineName = Literal["auto", "plain", "captured"]
"""The recipe's `runtime.engine`."""

Forward = Callable[[Batch], torch.Tensor]
"""Logits (B, C) of a batch."""


def classifier_forward(model: torch.nn.Module, engine: EngineName = "auto", *, compiled: bool = False) -> Forward:
    """How a classifier of transformers, with or without adapters of peft, answers a batch.

    Args:
        model: the classifier.
        engine: "plain" = by the modules of transformers and peft; else by `models.fused`, which reads the same
            weights, where it knows the model.
        compiled: let PyTorch compile it where it can; worth it for many batches of a few sizes.
    """
    from peft import PeftModel

    if engine != "plain":
        with suppress(NotImplementedError):
            return FusedClassifier(model, compiled=compiled and can_compile())
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model

    def forward(batch: Batch) -> torch.Tensor:
        return tasks.class_logits(base, batch.input_ids, batch.position_ids, batch.attention_mask(), batch.last_token)

    return forward


def score_rows(
    forward: Forward,
    rows: TokenRows,
    device: torch.device,
    progress: Progress | None = None,
    *,
    label: str = "scoring",
    max_tokens: int | None = None,
    prefix_tree: bool = True,
) -> torch.Tensor:
    """Logits of every text, computed once for texts with the same tokens.

    A batch for which the device has no memory is tried again at half the size.

    Args:
        forward: logits (B, C) of a batch on `device`.
        rows: the tokens of N texts, at least one.
        device: where the model is.
        progress: shows a bar of texts and is told of the tokens that were computed.
        label: the bar's name.
        max_tokens: of one batch; None = what is fastest on the device.
        prefix_tree: where `forward` is a `FusedClassifier`, compute what texts begin with once; else, and for other
            forwards, batches have texts of one length.

    Returns:
        float32 on the CPU, (N, C), in the order of `rows`.

    Raises:
        NonFiniteError: a logit is NaN or infinite; the row is named.
        ResourceError: not even one text fits in memory.
    """
    distinct, place_of_row = _distinct(rows)
    answers = _Answers(len(distinct))
    shares = prefix_tree and isinstance(forward, FusedClassifier)
    budget = max_tokens or TOKENS_PER_BATCH[device.type]
    with (progress or SilentProgress()).bar(label, len(distinct), "rows") as bar, torch.no_grad():
        while len(pending := answers.missing()):
            todo = select_rows(distinct, pending.numpy())
            try:
                for batch in (tree_batches if shares else equal_length_batches)(todo, budget):
                    answers.put(pending[batch.rows], forward(batch.to(device)))
                    bar.advance(len(batch.rows), tokens=batch.tokens)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                budget, shares = _smaller(budget, todo, error, shares=shares)
    logits_NC = answers.on_cpu()
    _refuse_non_finite(logits_NC, distinct)
    return logits_NC[torch.from_numpy(place_of_row)]


class _Answers:
    """The logits of N texts as they come; they stay on the device, so that it never waits for the host."""

    def __init__(self, texts: int) -> None:
        self._is_done_N = torch.zeros(texts, dtype=torch.bool)
        self._logits_NC: torch.Tensor | None = None

    def missing(self) -> torch.Tensor:
        """Texts without an answer, int64 on the CPU."""
        return (~self._is_done_N).nonzero().flatten()

    def put(self, texts_B: torch.Tensor, logits_BC: torch.Tensor) -> None:
        """Keep the logits of some texts; a lack of memory shows here or before, never later."""
        if self._logits_NC is None:
            shape = (len(self._is_done_N), logits_BC.shape[1])
            self._logits_NC = torch.zeros(shape, dtype=torch.float32, device=logits_BC.device)
        self._logits_NC.index_copy_(0, texts_B.to(logits_BC.device, non_blocking=True), logits_BC.float())
        self._is_done_N[texts_B] = True

    def on_cpu(self) -> torch.Tensor:
        """All logits, float32 (N, C); waits for the device."""
        assert self._logits_NC is not None and self._is_done_N.all(), "every text was given an answer"
        return self._logits_NC.cpu()


def _smaller(budget: int, rows: TokenRows, error: Exception, *, shares: bool) -> tuple[int, bool]:
    """Half the tokens of a batch and whether it is cut from a prefix tree, whose smallest batch may have many texts."""
    longest = int(rows.lengths.max())
    if budget <= longest and not shares:
        raise ResourceError(
            f"not even one text of {longest} tokens can be scored in the device's memory; lower "
            "data.max_length_tokens, choose a smaller model, or teacher.quantization=nf4"
        ) from error
    torch.cuda.empty_cache()
    whole = tree_tokens(rows) if shares else int(rows.lengths.sum())
    return max(longest, min(budget, whole) // 2), shares and budget > longest


def _distinct(rows: TokenRows) -> tuple[TokenRows, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Texts with different tokens, and for each text its place among them, (N,)."""
    first: dict[bytes, int] = {}
    place = np.empty(len(rows), np.int64)
    chosen: list[int] = []
    for row in range(len(rows)):
        key = rows[row].tobytes()
        if key not in first:
            first[key] = len(chosen)
            chosen.append(row)
        place[row] = first[key]
    return select_rows(rows, np.array(chosen, np.int64)), place


def select_rows(rows: TokenRows, chosen: np.ndarray[tuple[int], np.dtype[np.int64]]) -> TokenRows:
    """Some texts of a split, in the given order."""
    lengths = rows.lengths[chosen]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths) + np.repeat(rows.offsets[chosen], lengths)
    return TokenRows(tuple(rows.ids[row] for row in chosen), rows.tokens[place], offsets)


def _refuse_non_finite(logits_NC: torch.Tensor, rows: TokenRows) -> None:
    bad = (~torch.isfinite(logits_NC)).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(
            f"the model answers row {rows.ids[bad[0]]} ({len(bad)} rows in all) with logits "
            f"{logits_NC[bad[0]].tolist()}; its weights are damaged or overflow: try runtime.precision=float32"
        )
