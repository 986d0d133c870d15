"""The teacher's logits on disk: scored once, joined by row id, never taken for another teacher's or another text's.

They lie in shards, each a folder that is published whole with its sha256, so that a scoring which was interrupted goes
on after the last one. The index, which makes them targets, is written when all are there.

Shapes: N rows, C classes.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_neo.assets import cache_folder
from llm_neo.assets.cache import file_sha256, locked, staged_folder
from llm_neo.assets.seals import read_sealed, sealed_text
from llm_neo.errors import InputError
from llm_neo.files import write_text_atomically

LOGITS_FILE, SHARD_FILE, INDEX_FILE = "logits.safetensors", "shard.json", "targets.json"


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


@dataclass(frozen=True)
class TargetStore:
    """The shards of one teacher's targets for one set of rows.

    Attributes:
        key: fingerprint of everything that shapes them.
        shards: the row ids of each shard, in order.
    """

    key: str
    shards: tuple[tuple[str, ...], ...]

    @property
    def folder(self) -> Path:
        """Where they are kept."""
        return cache_folder() / "targets" / self.key

    def locked(self, say: Callable[[str], None]) -> AbstractContextManager[None]:
        """Nobody else scores these rows meanwhile; another run that does is waited for, and `say` is told."""
        return locked(self.folder.with_name(f"{self.key}.lock"), "scores the same rows with the same teacher", say)

    def read(self, shard: int) -> torch.Tensor | None:
        """The logits of a shard's rows, in its order, or None where nobody has scored it yet.

        Raises:
            InputError: it is there but not as it was written, or holds other rows; it is named.
        """
        from safetensors.torch import load_file

        folder = self._shard(shard)
        if not folder.is_dir():
            return None
        found = read_sealed(folder / SHARD_FILE) or {}
        try:
            intact = found.get("logits_sha256") == file_sha256(folder / LOGITS_FILE)
        except OSError:
            intact = False
        if not intact or found["key"] != self.key or found["row_ids"] != list(self.shards[shard]):
            raise InputError(
                f"the teacher targets' shard {shard + 1} of {len(self.shards)}, {folder}, is "
                f"{'of other rows' if intact else 'damaged'}; delete that folder and run again: only its rows are "
                "scored anew"
            )
        return load_file(folder / LOGITS_FILE)["logits"]

    def write(self, shard: int, logits_NC: torch.Tensor) -> None:
        """Publish the logits of a shard's rows, in its order.

        Raises:
            ResourceError: the disk is full; the shards before stay.
        """
        from safetensors.torch import save_file

        with staged_folder(self._shard(shard)) as stage:
            save_file({"logits": logits_NC.contiguous()}, stage / LOGITS_FILE)
            document = {
                "key": self.key,
                "logits_sha256": file_sha256(stage / LOGITS_FILE),
                "row_ids": list(self.shards[shard]),
            }
            (stage / SHARD_FILE).write_text(sealed_text(document), encoding="utf-8")

    def finish(self, targets: Targets, facts: dict[str, Any]) -> None:
        """Write the index: every shard is there.

        Args:
            targets: all of them.
            facts: what the key was made of, for people.
        """
        teacher = [targets.fresh_head, targets.layers, targets.parameters]
        index = {"key": self.key, "teacher": teacher, "facts": facts}
        write_text_atomically(self.folder / INDEX_FILE, sealed_text(index))

    def load(self) -> Targets | None:
        """All of them, or None where a part is yet to be scored.

        Raises:
            InputError: they are there but not as they were written.
        """
        file = self.folder / INDEX_FILE
        if not file.is_file():
            return None
        index = read_sealed(file)
        if index is None or index["key"] != self.key:
            raise InputError(f"the index of the teacher targets, {file}, is damaged; delete that file and run again")
        logits = [self.read(shard) for shard in range(len(self.shards))]
        whole = [shard for shard in logits if shard is not None]
        if len(whole) < len(logits):
            return None
        ids = tuple(row for shard in self.shards for row in shard)
        return Targets(ids, torch.cat(whole), *index["teacher"])

    def _shard(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}"
