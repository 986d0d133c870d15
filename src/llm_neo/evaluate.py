"""A model over a split: every text once, in batches of equal length, and what comes out of it.

Shapes: N texts, C classes.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch

from llm_neo import tasks
from llm_neo.batching import Batch, TokenRows, equal_length_batches
from llm_neo.errors import NonFiniteError, ResourceError
from llm_neo.models.fused import FusedClassifier, can_compile, unsupported
from llm_neo.progress import Progress, SilentProgress

TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 16384}
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

    if engine != "plain" and unsupported(model) is None:
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
) -> torch.Tensor:
    """Logits of every text, computed once for texts with the same tokens.

    A batch for which the device has no memory is tried again at half the size.

    Args:
        forward: logits (B, C) of a batch on `device`.
        rows: the tokens of N texts.
        device: where the model is.
        progress: shows a bar of texts.
        label: the bar's name.
        max_tokens: of one batch; None = what is fastest on the device.

    Returns:
        float32 on the CPU, (N, C), in the order of `rows`.

    Raises:
        NonFiniteError: a logit is NaN or infinite; the row is named.
        ResourceError: not even one text fits in memory.
    """
    distinct, place_of_row = _distinct(rows)
    budget = max_tokens or TOKENS_PER_BATCH[device.type]
    logits: list[torch.Tensor | None] = [None] * len(distinct)
    with (progress or SilentProgress()).bar(label, len(distinct), "rows") as bar, torch.no_grad():
        while pending := [index for index, known in enumerate(logits) if known is None]:
            todo = select_rows(distinct, np.array(pending))
            try:
                for batch in equal_length_batches(todo, budget):
                    answer_BC = forward(batch.to(device)).float().cpu()
                    for position, row in enumerate(batch.rows.tolist()):
                        logits[pending[row]] = answer_BC[position]
                    bar.advance(len(batch.rows), tokens=batch.tokens)
            except torch.OutOfMemoryError as error:
                budget = _smaller(budget, todo, error)
    stacked = torch.stack([row for row in logits if row is not None])
    _refuse_non_finite(stacked, distinct)
    return stacked[torch.from_numpy(place_of_row)]


def _smaller(budget: int, rows: TokenRows, error: Exception) -> int:
    longest = int(rows.lengths.max())
    if budget <= longest:
        raise ResourceError(
            f"not even one text of {longest} tokens can be scored in the device's memory; lower "
            "data.max_length_tokens, choose a smaller model, or teacher.quantization=nf4"
        ) from error
    torch.cuda.empty_cache()
    return max(longest, min(budget, int(rows.lengths.sum())) // 2)


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
