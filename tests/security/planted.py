"""Files that would leave a trace if anything ran them, and the folders that they are put into."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

TRACE = "the payload ran"
PICKLES = [
    "pytorch_model.bin",
    "adapter_model.bin",
    "model.pkl",
    "model.pt",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "training_args.bin",
    "vocab.pkl",
    "logits.npy",
    "targets.pickle",
    "state.pkl",
    "tensors.pt",
    "rows.pkl",
]
CODE = [
    "modeling_llama.py",
    "configuration_llama.py",
    "tokenization_llama.py",
    "own.py",
    "sitecustomize.py",
    "conftest.py",
    "setup.py",
    "__init__.py",
    "generate.py",
]


class Payload:
    """Makes a folder beside `where` when it is unpickled."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.where / TRACE),)


def pickled(where: Path) -> bytes:
    return pickle.dumps(Payload(where))


def code(where: Path) -> str:
    return f"import os\nos.makedirs({str(where / TRACE)!r}, exist_ok=True)\n"


def write(file: Path, where: Path) -> Path:
    """A pickle in the form that the file's name promises, or Python code; running it leaves the trace in `where`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".py":
        file.write_text(code(where))
    elif file.suffix in (".npy", ".npz"):
        with file.open("wb") as opened:
            array = np.array([Payload(where)], dtype=object)
            np.save(opened, array, allow_pickle=True) if file.suffix == ".npy" else np.savez(opened, rows=array)
    elif file.suffix in (".bin", ".pt", ".pth"):
        torch.save({"weight": Payload(where)}, file)
    else:
        file.write_bytes(pickled(where))
    return file


def sow(folder: Path, where: Path) -> int:
    """Every kind into a folder and into all below it; returns how many files."""
    places = [folder, *(place for place in folder.rglob("*") if place.is_dir() and not place.is_symlink())]
    for place in places:
        for name in (*PICKLES, *CODE):
            if not (place / name).exists():
                write(place / name, where)
    return len(places) * len((*PICKLES, *CODE))


def ran(where: Path) -> bool:
    """Whether a payload ran; it is forgotten then."""
    trace = where / TRACE
    if trace.is_dir():
        trace.rmdir()
        return True
    return False
