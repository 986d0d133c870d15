"""The engines that every invariant is held against."""

from pathlib import Path

import pytest
import torch
from scene import Student, student

from llm_neo.batching import Batch
from llm_neo.buckets import bucket, padded
from llm_neo.captured import CapturedEngine

ENGINES = ["plain", "fused", "captured"]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The plain, the fused and the captured engine.

    On a GPU "captured" replays CUDA graphs, and "fused" is left out, since `auto` captures there. On a CPU what a graph
    would hold runs op by op; padding, flags and bookkeeping are the same.
    """
    name: str = request.param
    if torch.cuda.is_available():
        torch._dynamo.reset()
        if name == "fused":
            pytest.skip("a GPU has the captured engine instead")
    elif name == "captured":

        def replay(self: CapturedEngine, batch: Batch, rows: int, *, updates: bool) -> None:
            tokens = bucket(batch.tokens + self._rows - len(batch.rows) + 1)
            self._body(padded(batch, tokens, self._rows, rows), tokens, updates=updates)

        monkeypatch.setattr(CapturedEngine, "_replay", replay)
        monkeypatch.setattr("llm_neo.engines._decide", lambda *_: ("captured", ""))
        monkeypatch.setattr("llm_neo.evaluate.can_compile", lambda: False)
    return name


@pytest.fixture
def learner(llama: Path) -> Student:
    """A student in float32."""
    return student(llama)
