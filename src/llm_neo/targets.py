"""The teacher's logits on disk: scored once, joined by row id, never taken for another teacher's or another text's.

Shapes: N rows, C classes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_neo.assets import cache_folder
from llm_neo.assets.cache import file_sha256, staged_folder
from llm_neo.errors import InputError

LOGITS_FILE, INDEX_FILE = "logits.safetensors", "targets.json"


@dataclass(frozen=True)
class Targets:
    """What a teacher says of some rows.

    Attributes:
        row_ids: one per row of `logits_NC`.
        logits_NC: float32 on the CPU.
        fresh_head: whether the teacher's head was random.
        layers: the teacher's decoder layers.
        parameters: its weights.
    """

    row_ids: tuple[str, ...]
    logits_NC: torch.Tensor
    fresh_head: bool
    layers: int
    parameters: int

    def of(self, row_ids: Sequence[str]) -> torch.Tensor:
        """The logits of these rows, in their order, (len(row_ids), C).

        Raises:
            InputError: a row was never scored.
        """
        place = {row: index for index, row in enumerate(self.row_ids)}
        try:
            return self.logits_NC[[place[row] for row in row_ids]]
        except KeyError as error:
            raise InputError(f"the teacher targets lack row {error.args[0]}; score the teacher again") from error


def targets_folder(key: str) -> Path:
    """Where the targets with this fingerprint are kept."""
    return cache_folder() / "targets" / key


def save_targets(targets: Targets, key: str, facts: dict[str, Any]) -> Path:
    """Write the targets whole or not at all.

    Args:
        targets: what to keep.
        key: fingerprint of everything that shaped them.
        facts: what the fingerprint was made of, for people.

    Returns:
        The folder that holds them.
    """
    from safetensors.torch import save_file

    folder = targets_folder(key)
    with staged_folder(folder) as stage:
        save_file({"logits": targets.logits_NC.contiguous()}, stage / LOGITS_FILE)
        index = {
            "key": key,
            "sha256": file_sha256(stage / LOGITS_FILE),
            "teacher": [targets.fresh_head, targets.layers, targets.parameters],
            "facts": facts,
            "row_ids": targets.row_ids,
        }
        (stage / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    return folder


def load_targets(key: str) -> Targets | None:
    """The targets with this fingerprint, or None where nobody has scored them yet.

    Raises:
        InputError: they are there but not as they were written.
    """
    from safetensors.torch import load_file

    folder = targets_folder(key)
    if not folder.is_dir():
        return None
    try:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        intact = index["key"] == key and file_sha256(folder / LOGITS_FILE) == index["sha256"]
        row_ids, (fresh_head, layers, parameters) = tuple(index["row_ids"]), index["teacher"]
    except (OSError, ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise InputError(f"the teacher targets in {folder} are damaged; delete that folder and run again")
    return Targets(row_ids, load_file(folder / LOGITS_FILE)["logits"], fresh_head, layers, parameters)
