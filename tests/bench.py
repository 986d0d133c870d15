"""A place to try bad inputs in: a recipe with its rows and its model, and ways to spoil each."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from assets_builders import tiny_gguf
from safetensors.torch import load_file, save_file
from tiny import WORDS, tiny_llama, toy_file

RECIPE = """
data:
  train: {source: train.tsv, text: sentence, label: label}
  validation: {source: validation.csv, text: sentence, label: label}
  max_length_tokens: 32
teacher: {model: llama, quantization: none, gate: warn}
student: {model: llama, layers: 2, lora: {rank: 4, alpha: 8}}
train: {learning_rate: 1.0e-2}
runtime: {device: cpu, precision: float32}
output: run
"""


@dataclass(frozen=True)
class Material:
    """What the cases begin with; read only.

    Attributes:
        llama: a random language model of 3 layers.
        run: a finished run.
    """

    llama: Path
    run: Path


@dataclass(frozen=True)
class Bench:
    """The working folder of one case: recipe `base.yaml`, its rows, its model `llama`."""

    folder: Path
    material: Material
    patch: pytest.MonkeyPatch

    def write(self, name: str, content: str | bytes) -> str:
        """A file; returns its name."""
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    def validate(self, text: str | bytes) -> list[str]:
        """The words that check a recipe file of this content."""
        return ["validate", self.write("mine.yaml", text)]

    def changed(self, *overrides: str) -> list[str]:
        """The words that check the base recipe with overrides."""
        return ["validate", "base.yaml", *overrides]

    def distil(self, *overrides: str) -> list[str]:
        """The words that run the base recipe with overrides."""
        return ["distill", "base.yaml", *overrides]

    def train(self, name: str, content: str | bytes, *overrides: str) -> list[str]:
        """The words that distil with these training rows."""
        return self.distil(f"data.train.source={self.write(name, content)}", *overrides)

    def validation(self, content: str | bytes) -> list[str]:
        """The words that distil with these validation rows."""
        return self.distil(f"data.validation.source={self.write('v.tsv', content)}")

    def model(self, change: Callable[[Path], object], *overrides: str, who: str = "student") -> list[str]:
        """The words that distil with a changed copy of the model as the student or teacher."""
        shutil.copytree(self.material.llama, self.folder / "changed")
        change(self.folder / "changed")
        return self.distil(f"{who}.model=changed", *overrides)

    def adapter(self, change: Callable[[Path], object], *overrides: str) -> list[str]:
        """The words that distil with a changed copy of the finished run's student as the teacher's adapter."""
        shutil.copytree(self.material.run / "student", self.folder / "adapter")
        change(self.folder / "adapter")
        return self.distil("teacher.model=adapter/base", "teacher.adapter=adapter", *overrides)

    def finished(self, change: Callable[[Path], object] = lambda run: None) -> str:
        """A copy of the finished run, changed."""
        shutil.copytree(self.material.run, self.folder / "finished")
        change(self.folder / "finished")
        return "finished"


def make_rows(folder: Path) -> None:
    toy_file(folder / "train.tsv", 16, seed=1)
    toy_file(folder / "validation.csv", 8, seed=2)


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    """Change keys of a JSON file; None removes one."""

    def change(folder: Path) -> None:
        document = json.loads((folder / name).read_text()) | changes
        kept = {key: value for key, value in document.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))

    return change


def put(name: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


def remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def tensors(
    change: Callable[[dict[str, torch.Tensor]], object], name: str = "model.safetensors"
) -> Callable[[Path], None]:
    """Change the tensors of a safetensors file."""

    def rewrite(folder: Path) -> None:
        state = load_file(folder / name)
        change(state)
        save_file(state, folder / name, metadata={"format": "pt"})

    return rewrite


def cut(name: str, size: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return change


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def bert(kind: str) -> Callable[[Path], None]:
    """A tiny BERT of this class of transformers in place of the model."""

    def change(folder: Path) -> None:
        import transformers

        shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
        getattr(transformers, kind)(transformers.BertConfig(vocab_size=64, **shape)).save_pretrained(folder)

    return change


def vision(folder: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, **shape)).save_pretrained(folder)


def gpt2(folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=64, n_layer=1, n_head=1)).save_pretrained(folder)


def larger_tokenizer(folder: Path) -> None:
    words = list(dict.fromkeys([*WORDS, *(f"word{number}" for number in range(64))]))
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["vocab"] = {word: index for index, word in enumerate(words)}
    path.write_text(json.dumps(document))


def headless(folder: Path) -> None:
    def behead(state: dict[str, torch.Tensor]) -> None:
        del state[next(name for name in state if name.endswith("score.weight"))]

    tensors(behead, "adapter_model.safetensors")(folder)


def classifier(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        shutil.rmtree(folder)
        tiny_llama(folder, layers=3, classes=list(names))

    return change


def untied(folder: Path) -> None:
    classifier("negative", "positive")(folder)
    edit("config.json", tie_word_embeddings=False)(folder)


def gguf_model(content: bytes | None, **options: Any) -> Callable[[Bench], list[str]]:
    """The words that distil with a GGUF file: of this content, or a tiny one with these options."""

    def words(bench: Bench) -> list[str]:
        tiny_gguf(bench.folder / "tiny.gguf", **options)
        if content is not None:
            bench.write("tiny.gguf", content)
        return bench.distil("student.model=tiny.gguf")

    return words


def folder(bench: Bench, name: str, **files: str) -> str:
    """The name of a new folder with these files; `__` in a name stands for a dot."""
    (bench.folder / name).mkdir()
    for file, content in files.items():
        bench.write(f"{name}/{file.replace('__', '.')}", content)
    return name
