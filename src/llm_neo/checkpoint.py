"""Where a training run stands, on disk: whole or not at all, safetensors and JSON only.

A checkpoint is a folder that is filled under another name, synchronised and renamed; `LATEST` is replaced after that,
and only then older ones are deleted. The newest but one stays, in case the newest gets damaged.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llm_neo.assets.cache import file_sha256
from llm_neo.assets.seals import read_sealed, sealed_text
from llm_neo.errors import InputError
from llm_neo.files import filled_folder, is_temporary, write_text_atomically
from llm_neo.models.adapters import trainable_tensors
from llm_neo.runtime import versions
from llm_neo.train_state import TrainingState

TENSORS_FILE, STATE_FILE, LATEST_FILE = "tensors.safetensors", "state.json", "LATEST"
_STATE_BYTES = 1 << 20
_MISSING = "nothing"


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one training run; one process at a time works on them.

    Attributes:
        folder: holds one folder per checkpoint, the last two, and the name of the newest.
        identity: all that shapes the run, as JSON can write it, nested as the recipe is; what differs in a
            checkpoint is named when that is refused.
    """

    folder: Path
    identity: Mapping[str, Any]

    def save(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        state: TrainingState,
    ) -> Path:
        """Write a checkpoint, then name it the newest, then delete all but the one before it.

        Raises:
            ResourceError: the disk is full; the checkpoint before stays the newest.
        """
        target = self.folder / f"step-{state.step:08d}"
        if target.is_dir() and _read(target) is not None:
            return target
        shutil.rmtree(target, ignore_errors=True)
        tensors = _gather(model, optimizer)
        needed = sum(tensor.nbytes for tensor in tensors.values()) + _STATE_BYTES
        with filled_folder(target, needed) as stage:
            save_file(tensors, stage / TENSORS_FILE)
            document = {
                "identity": dict(self.identity),
                "versions": _versions(),
                "tensors_sha256": file_sha256(stage / TENSORS_FILE),
                "scheduler": {key: value for key, value in scheduler.state_dict().items() if _is_plain(value)},
                "learning_rates": [float(group["lr"]) for group in optimizer.param_groups],
                "state": state.document(),
            }
            (stage / STATE_FILE).write_text(sealed_text(document), encoding="utf-8")
        write_text_atomically(self.folder / LATEST_FILE, target.name)
        self._prune(target)
        return target

    def restore(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        say: Callable[[str], None],
    ) -> TrainingState | None:
        """Put the newest whole checkpoint back, random numbers included; None where there is none.

        Args:
            model: gets its trainable weights.
            optimizer: gets its state.
            scheduler: gets its step.
            say: is told of damaged checkpoints, which are passed over, and of other versions of the software.

        Raises:
            InputError: the checkpoint belongs to another run; every field that differs is named.
        """
        checkpoint, document = self._newest_whole(say)
        if document is None:
            return None
        self._refuse(checkpoint, _differences(document["identity"], self.identity))
        changed = _differences(document["versions"], _versions())
        if changed:
            say(
                f"the checkpoint was made with other software, so the rest may differ in rounding: {'; '.join(changed)}"
            )
        _scatter(load_file(checkpoint / TENSORS_FILE), model, optimizer)
        scheduler.load_state_dict({**scheduler.state_dict(), **document["scheduler"]})
        for group, rate in zip(optimizer.param_groups, document["learning_rates"], strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        return TrainingState.of(document["state"])

    def refuse_changes(self) -> None:
        """Compare what is known of the run by now, which may be a part of `identity`, with the newest checkpoint.

        Raises:
            InputError: a field that the checkpoint has too is another one there.
        """
        checkpoint, document = self._newest_whole(lambda _: None)
        if document is not None:
            known = _flat(self.identity)
            recorded = {key: value for key, value in _flat(document["identity"]).items() if key in known}
            self._refuse(checkpoint, _differences(recorded, known))

    def step(self) -> int:
        """Steps that the newest whole checkpoint has behind it; 0 where there is none."""
        _, document = self._newest_whole(lambda _: None)
        return 0 if document is None else int(document["state"]["step"])

    def _newest_whole(self, say: Callable[[str], None]) -> tuple[Path, dict[str, Any] | None]:
        """The newest checkpoint that is as it was written, and its description."""
        found = sorted((path for path in self.folder.glob("step-*") if path.is_dir()), reverse=True)
        latest = self.folder / LATEST_FILE
        named = latest.read_text(encoding="utf-8", errors="replace") if latest.is_file() else None
        if named is not None and named not in [path.name for path in found]:
            say(f"{latest} names {named!r}, which is not there; looking for the newest whole checkpoint instead")
        for checkpoint in found:
            document = _read(checkpoint)
            if document is not None:
                return checkpoint, document
            say(f"the checkpoint {checkpoint} is damaged and passed over")
        if found:
            say("no checkpoint is whole; the training begins anew")
        return self.folder, None

    def _refuse(self, checkpoint: Path, differences: list[str]) -> None:
        if differences:
            raise InputError(
                f"the checkpoint {checkpoint} belongs to a run that differs:\n  "
                + "\n  ".join(differences)
                + "\nchange them back to go on, or begin anew with --overwrite"
            )

    def _prune(self, newest: Path) -> None:
        """Keep the newest and the one before it; what is beyond the newest was found to be damaged."""
        before = sorted(path for path in self.folder.glob("step-*") if path.name < newest.name)
        for other in self.folder.iterdir():
            is_old = other.name.startswith("step-") and other not in (newest, *before[-1:])
            if other.is_dir() and (is_old or is_temporary(other.name)):
                shutil.rmtree(other, ignore_errors=True)
            elif is_temporary(other.name):
                other.unlink(missing_ok=True)


def _read(checkpoint: Path) -> dict[str, Any] | None:
    """The description of a checkpoint, or None where any byte of it has changed."""
    document = read_sealed(checkpoint / STATE_FILE)
    try:
        intact = document is not None and file_sha256(checkpoint / TENSORS_FILE) == document["tensors_sha256"]
    except (OSError, KeyError):
        intact = False
    return document if intact else None


def _differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`field: was x, is y` for every field that is not the same."""
    old, new = _flat(recorded), _flat(now)
    keys = [key for key in {**old, **new} if old.get(key, _MISSING) != new.get(key, _MISSING)]
    return [f"{key}: was {old.get(key, _MISSING)}, is {new.get(key, _MISSING)}" for key in keys]


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and plain values; tuples become lists, as JSON has them."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


@cache
def _versions() -> dict[str, str]:
    return versions()


def _is_plain(value: object) -> bool:
    return isinstance(value, (int, float, bool)) or (isinstance(value, list) and all(map(_is_plain, value)))


def _gather(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {f"model.{name}": tensor.contiguous().cpu() for name, tensor in trainable_tensors(model).items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{index}.{slot}": torch.as_tensor(value).contiguous().cpu() for slot, value in slots.items()
        }
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _scatter(tensors: dict[str, torch.Tensor], model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for name, parameter in trainable_tensors(model).items():
        parameter.copy_(tensors[f"model.{name}"])
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, slot = key.split(".")
            slots.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
