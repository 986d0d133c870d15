"""Tiny models, data and recipes of runs that take a second or two, and what must be equal of two of them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets_builders import tiny_gguf
from tiny import BAD, GOOD, tiny_llama, toy_file

from llm_neo import scoring

RECIPE = """
data:
  train: {{source: {folder}/train.tsv, text: sentence, label: label}}
  validation: {{source: {folder}/validation.csv, text: sentence, label: label}}
  max_length_tokens: 32
teacher: {{model: {folder}/llama, quantization: none, gate: warn}}
student:
  model: {folder}/llama
  layers: 1
  lora: {{rank: 4, alpha: 8, dropout: 0.1, targets: [q_proj, k_proj, v_proj]}}
train: {{learning_rate: 1.0e-2, batch_size: 8, evaluate_every_steps: 7, evaluate_rows: 20, log_every_steps: 2,
        checkpoint_every_steps: 3}}
runtime: {{device: cpu, precision: float32}}
output: {folder}/unnamed
"""
_TUNED = (
    "{epochs: 1, batch_size: 8, learning_rate: 1.0e-2, lora: {rank: 4, alpha: 8, dropout: 0.1, targets: all-linear}}"
)
_PROMPT = f"{{template: '{{text}} :', label_words: [{BAD[0]}, {GOOD[0]}]}}"


@dataclass(frozen=True)
class Variant:
    """One kind of run: its name and what it changes in the recipe."""

    name: str
    changes: tuple[str, ...]


def variants(folder: Path) -> list[Variant]:
    """Every way to a teacher, to a student and to their weights."""
    gguf = f"{folder}/tiny.gguf"
    return [
        Variant("tuned", (f"teacher.fine_tune={_TUNED}",)),
        Variant("prompted", (f"teacher.prompt={_PROMPT}", "train.epochs=2")),
        Variant("whole", (f"teacher.prompt={_PROMPT}", "student.lora=null", "train.learning_rate=1e-3")),
        Variant(
            "converted",
            (f"teacher.prompt={_PROMPT}", f"teacher.model={gguf}", f"student.model={gguf}", "student.layers=1"),
        ),
    ]


def make(folder: Path) -> Path:
    """The files in `folder`; returns the recipe. Shards are small, so that a run has several."""
    scoring.ROWS_PER_SHARD["cpu"] = 40
    folder.mkdir(parents=True, exist_ok=True)
    tiny_llama(folder / "llama", layers=3)
    tiny_gguf(folder / "tiny.gguf")
    toy_file(folder / "train.tsv", 160, seed=1)
    toy_file(folder / "validation.csv", 60, seed=2)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=folder), encoding="utf-8")
    return recipe


@dataclass(frozen=True)
class Result:
    """What two runs of the same recipe must have in common, to the byte."""

    weights: tuple[tuple[str, bytes], ...]
    predictions: bytes
    metrics: tuple[str, ...]
    figures: str


def result_of(run: Path) -> Result:
    """The weights, answers, log and figures of a finished run, without its times."""
    weights = tuple((file.name, file.read_bytes()) for file in sorted((run / "student").rglob("*.safetensors")))
    record: dict[str, Any] = json.loads((run / "run.json").read_text())
    figures = {key: record[key] for key in ("teacher", "student", "evaluations", "best", "paired_difference")}
    return Result(weights, (run / "predictions.jsonl").read_bytes(), metrics_of(run), json.dumps(figures))


def metrics_of(run: Path) -> tuple[str, ...]:
    """The lines of the log without their times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return tuple(json.dumps(line | {"seconds": 0}) for line in lines)


def duplicates(run: Path) -> int:
    """Lines of the log for a stage and step that is there before."""
    steps = [(line["stage"], line["step"]) for line in map(json.loads, metrics_of(run))]
    return len(steps) - len(set(steps))


def whole_checkpoint(folder: Path) -> int | None:
    """The step of the checkpoint that LATEST names, read by other means than the product's; None = it is damaged.

    0 where there is none yet.
    """
    if not (folder / "LATEST").is_file():
        return 0
    named = folder / (folder / "LATEST").read_text()
    try:
        document = json.loads((named / "state.json").read_text())
        seal = document.pop("sha256")
        content = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
        tensors = hashlib.sha256((named / "tensors.safetensors").read_bytes()).hexdigest()
    except (OSError, ValueError, KeyError):
        return None
    intact = seal == content and tensors == document["tensors_sha256"]
    return document["state"]["step"] if intact else None


def is_whole(run: Path, *, was_saved: bool) -> bool:
    """Whether the checkpoints of an ended run are whole and, if `was_saved`, have every logged step behind them."""
    logged: dict[str, int] = {}
    if was_saved and (run / "metrics.jsonl").is_file():
        logged = {line["stage"]: line["step"] for line in map(json.loads, metrics_of(run))}
    for stage, part in (("teacher", "teacher"), ("train", "student")):
        step = whole_checkpoint(run / "checkpoints" / part)
        if step is None or step < logged.get(stage, 0):
            return False
    return True
