"""Where a training run stands, on disk: whole or not at all, safetensors and JSON only."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llm_neo.assets.cache import file_sha256, staged_folder
from llm_neo.engine import StepFigures
from llm_neo.errors import InputError
from llm_neo.models.adapters import trainable_tensors

TENSORS_FILE, STATE_FILE, LATEST_FILE = "tensors.safetensors", "state.json", "LATEST"
_SUMMED = ("loss", "hard_loss", "soft_loss", "gradient_norm", "learning_rate", "tokens")


@dataclass
class TrainingState:
    """What the loop counts while it runs.

    Attributes:
        step: optimizer steps done.
        tokens: tokens trained on.
        seconds: training time, interruptions not counted.
        window: sums of the steps' figures since the last log line.
        window_steps: how many those are.
        loss_sum: of the training loss since the last evaluation.
        loss_steps: how many steps that is.
        evaluations: what the evaluations so far returned.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    window: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_SUMMED, 0.0))
    window_steps: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    def add(self, steps: Sequence[StepFigures], seconds: float) -> None:
        """Count some steps, the last of which ended `seconds` after the run began."""
        self.seconds = seconds
        for figures in steps:
            self.step += 1
            self.tokens += figures.tokens
            for name in _SUMMED:
                self.window[name] += getattr(figures, name)
            self.window_steps += 1
            self.loss_sum += figures.loss
            self.loss_steps += 1

    def pop_mean(self) -> StepFigures:
        """Mean figures (tokens: their sum) of the steps since the last call."""
        sums, steps = self.window, self.window_steps
        self.window, self.window_steps = dict.fromkeys(_SUMMED, 0.0), 0
        means = {name: sums[name] / steps for name in _SUMMED if name != "tokens"}
        return StepFigures(**means, tokens=int(sums["tokens"]))

    def pop_training_loss(self) -> float:
        """Mean training loss of the steps since the last call."""
        mean = self.loss_sum / max(1, self.loss_steps)
        self.loss_sum, self.loss_steps = 0.0, 0
        return mean


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one training run.

    Attributes:
        folder: holds one folder per checkpoint and the name of the newest; older ones are deleted after it is named.
        identity: fingerprint of all that shapes the run; a checkpoint of another run is refused.
    """

    folder: Path
    identity: str

    def save(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        state: TrainingState,
    ) -> Path:
        """Write a checkpoint, then name it the newest, then delete the ones before it.

        Raises:
            ResourceError: the disk is full; the checkpoint before stays the newest.
        """
        name = f"step-{state.step:08d}"
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        with staged_folder(target) as stage:
            save_file(_gather(model, optimizer), stage / TENSORS_FILE)
            document = {
                "identity": self.identity,
                "sha256": file_sha256(stage / TENSORS_FILE),
                "scheduler": {key: value for key, value in scheduler.state_dict().items() if _is_plain(value)},
                "learning_rates": [float(group["lr"]) for group in optimizer.param_groups],
                "state": asdict(state),
            }
            (stage / STATE_FILE).write_text(json.dumps(document), encoding="utf-8")
        _replace_text(self.folder / LATEST_FILE, name)
        for other in self.folder.glob("step-*"):
            if other.name != name:
                shutil.rmtree(other, ignore_errors=True)
        return target

    def restore(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
    ) -> TrainingState | None:
        """Put the newest checkpoint back, random numbers included; None where there is none.

        Raises:
            InputError: the checkpoint is damaged or belongs to another run.
        """
        newest = self.newest()
        if newest is None:
            return None
        document = self._read(newest)
        tensors = load_file(newest / TENSORS_FILE)
        _scatter(tensors, model, optimizer)
        scheduler.load_state_dict({**scheduler.state_dict(), **document["scheduler"]})
        for group, rate in zip(optimizer.param_groups, document["learning_rates"], strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        return TrainingState(**document["state"])

    def newest(self) -> Path | None:
        """The folder of the newest checkpoint, or None."""
        latest = self.folder / LATEST_FILE
        return self.folder / latest.read_text(encoding="utf-8").strip() if latest.is_file() else None

    def step(self) -> int:
        """Steps that the newest checkpoint has behind it; 0 where there is none."""
        newest = self.newest()
        return 0 if newest is None else int(self._read(newest)["state"]["step"])

    def _read(self, checkpoint: Path) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
            intact = file_sha256(checkpoint / TENSORS_FILE) == document["sha256"]
        except (OSError, ValueError, KeyError):
            intact = False
        if not intact:
            raise InputError(f"the checkpoint {checkpoint} is damaged; delete {self.folder} and run again")
        if document["identity"] != self.identity:
            raise InputError(
                f"the checkpoint {checkpoint} belongs to another recipe, data or model; "
                "run with --overwrite to begin anew, or change them back"
            )
        return document


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


def _replace_text(path: Path, text: str) -> None:
    stage = path.with_suffix(".staging")
    with stage.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    stage.replace(path)
