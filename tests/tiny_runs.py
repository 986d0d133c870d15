"""Whole runs on tiny Llamas in a second or two each, for tests of what can be done with a finished run."""

import csv
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from tiny import BAD, GOOD, NEUTRAL, tiny_llama, toy_file

from llm_neo.distillation import distill
from llm_neo.recipe import load_recipe

RECIPE = """
data:
  train: {source: train.tsv, text: sentence, label: label}
  validation: {source: validation.csv, text: sentence, label: label}
  max_length_tokens: 8  # shorter than some of the texts
teacher: {model: llama, quantization: none, gate: warn}
student: {model: llama, lora: {rank: 4, alpha: 16, targets: [q_proj, v_proj]}}
train: {learning_rate: 1.0e-2, evaluate_every_steps: null, checkpoint_every_steps: null}
runtime: {device: cpu, precision: float32}
output: unnamed
"""
PROMPT = f"teacher.prompt={{template: '{{text}} :', label_words: [{BAD[0]}, {GOOD[0]}]}}"
"""A teacher that takes no time."""
PAIRS = (
    "data.train={source: pairs.tsv, text: [first, second], label: relation}",
    "data.validation={fraction_of_train: 0.3}",
    f"teacher.prompt={{template: '{{first}} : {{second}}', label_words: [{', '.join(NEUTRAL[:3])}]}}",
)
"""Three classes of pairs."""


def material(folder: Path) -> Path:
    """A language model of 3 layers, rows to learn from and to measure on."""
    tiny_llama(folder / "llama", layers=3)
    toy_file(folder / "train.tsv", 160, seed=1)
    toy_file(folder / "validation.csv", 60, seed=2)
    draw = random.Random(0)
    with (folder / "pairs.tsv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(("first", "second", "relation"))
        for _ in range(160):
            words = [draw.choice(draw.choice([GOOD, BAD, NEUTRAL])) for _ in range(2)]
            kinds = {word: "good" if word in GOOD else "bad" if word in BAD else "" for word in words}
            first, second = (kinds[word] for word in words)
            relation = "unclear" if "" in (first, second) else "same" if first == second else "other"
            fillers = [" ".join(draw.choices(NEUTRAL, k=draw.randint(0, 6))) for _ in range(2)]
            writer.writerow((f"{words[0]} {fillers[0]}", f"{words[1]} {fillers[1]}", relation))
    return folder


def run_of(folder: Path, name: str, *overrides: str) -> Path:
    """Distil `folder`'s material; paths of the recipe are relative to it. Returns the run directory."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LLM_NEO_CACHE", str(folder / "cache"))
        teacher = () if any(change.startswith("teacher.") for change in overrides) else (PROMPT,)
        distill(load_recipe(str(recipe), [*teacher, *overrides, f"output={folder / name}"]))
    return folder / name


def recorded(run: Path) -> tuple[list[list[str]], torch.Tensor]:
    """The validation texts of a run, and what its student made of them."""
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["text"] for line in lines], torch.tensor([line["student_logits"] for line in lines])


def edit_json(file: Path, **changes: Any) -> None:
    """Change some keys of a JSON object."""
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def unseal(run: Path) -> None:
    """Make the run one of before there were checksums, so that what its files say is looked at."""
    document = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps({k: v for k, v in document.items() if k not in ("files", "sha256")}))


@contextmanager
def hub_cache(folder: Path) -> Iterator[None]:
    """The hub's own cache in `folder`, and no way to the hub."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield


def cached_on_the_hub(folder: Path, repository: str, commit: str) -> Path:
    """Where the files of a commit belong in the cache; its main branch is at that commit."""
    home = folder / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(commit)
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    return snapshot
