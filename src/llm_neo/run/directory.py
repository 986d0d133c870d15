"""The folder of a run: where its files are, and how it is made and emptied.

A folder without `run.json` is not a finished run: that file is written last, atomically.
"""

import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llm_neo.errors import InputError
from llm_neo.files import explained, is_temporary

OWN_NAMES = frozenset(
    {
        "recipe.yaml",
        "run.json",
        "metrics.jsonl",
        "student",
        "checkpoints",
        "curves.png",
        "report.html",
        "predictions.jsonl",
        "tensorboard",
        "export",
    }
)
"""Everything that a run directory may hold; `--overwrite` removes nothing else."""

PREVIOUS, _MOVING, _DISCARDED = ".previous.tmp", ".moving.tmp", ".discarded.tmp"
"""Where a run lies that is to be replaced, until the new one is known to be possible; before that; and after."""


@dataclass(frozen=True)
class RunDirectory:
    """Where the files of one run are."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def run_json(self) -> Path:
        """The measured result; its presence means that the run is finished."""
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        """One JSON line for each logged step."""
        return self.path / "metrics.jsonl"

    @property
    def student(self) -> Path:
        """The folder that peft and transformers load."""
        return self.path / "student"

    @property
    def checkpoints(self) -> Path:
        """What a run continues from."""
        return self.path / "checkpoints"

    @property
    def curves(self) -> Path:
        """Losses and accuracy over the steps, a picture."""
        return self.path / "curves.png"

    @property
    def report(self) -> Path:
        """The result as a page."""
        return self.path / "report.html"

    @property
    def predictions(self) -> Path:
        """The student's answers on the validation rows, one JSON line each."""
        return self.path / "predictions.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Event files of TensorBoard."""
        return self.path / "tensorboard"


def prepare(path: str | Path, *, overwrite: bool = False) -> RunDirectory:
    """An empty, writable folder for a new run.

    Args:
        path: the folder; `~` is the user's home, and parents are made.
        overwrite: set aside what a folder holds that holds a run and nothing else; `discard_previous` removes it,
            `abandon` puts it back.

    Raises:
        InputError: the folder is not empty, holds files that are no part of a run, or cannot be written.
        ResourceError: the disk is full.
    """
    if "\0" in str(path):
        raise InputError(f"output {str(path)!r} holds a zero byte, which no path may; choose another output")
    run = RunDirectory(Path(path).expanduser())
    with explained(run.path):
        _mend(run)
        entries = _entries(run)
        if entries and all(map(is_temporary, entries)):
            # Killed while it wrote its first file.
            _remove_leftovers(run)
            entries = []
        if entries and not overwrite:
            raise InputError(_occupied(run, entries))
        if entries:
            _set_aside(run, entries)
        run.path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run.path):
            pass
    return run


def reopen(path: str | Path) -> RunDirectory:
    """The folder of a run that was interrupted, to go on with.

    Raises:
        InputError: there is no such run, or it is finished.
    """
    run = RunDirectory(Path(path).expanduser())
    if run.run_json.exists():
        raise InputError(f"the run in {run.path} is finished; there is nothing to resume")
    if not run.recipe.is_file():
        raise InputError(f"{run.path} holds no run: it has no recipe.yaml; name the folder of an interrupted run")
    _mend(run)
    _remove_leftovers(run)
    return run


def discard_previous(run: RunDirectory) -> None:
    """Remove the run that this one replaces, which was only set aside so far."""
    previous, discarded = run.path / PREVIOUS, run.path / _DISCARDED
    if previous.is_dir():
        # Under another name first: a run that is half removed must not be put back.
        shutil.rmtree(discarded, ignore_errors=True)
        previous.rename(discarded)
    shutil.rmtree(discarded, ignore_errors=True)


def _remove_leftovers(run: RunDirectory) -> None:
    """Delete what a killed run was writing."""
    for entry in run.path.iterdir():
        if is_temporary(entry.name) and entry.name != PREVIOUS:
            _remove(entry)


def abandon(run: RunDirectory) -> None:
    """Remove a run that ended before it computed anything; the one that it was to replace is there again."""
    # A failure to clean up must not hide why the run ended.
    with suppress(OSError):
        made = [run.recipe, run.metrics]
        entries = {entry.name for entry in run.path.iterdir()}
        if entries <= {PREVIOUS, *(path.name for path in made)} and not _has_content(run.metrics):
            for path in made:
                path.unlink(missing_ok=True)
            if PREVIOUS in entries:
                _mend(run)
            else:
                run.path.rmdir()


def _has_content(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def _entries(run: RunDirectory) -> list[str]:
    if run.path.is_dir():
        return sorted(entry.name for entry in run.path.iterdir())
    if run.path.exists():
        raise InputError(f"output {run.path} is a file; choose a folder that is empty or does not exist yet")
    return []


def _occupied(run: RunDirectory, entries: list[str]) -> str:
    if run.run_json.name in entries:
        return (
            f"output {run.path} holds a finished run; choose another output, or replace it with --overwrite "
            "(only an interrupted run can go on with --resume)"
        )
    if run.recipe.name in entries:
        return (
            f"output {run.path} holds an interrupted run; go on with it by `llm-neo distill --resume {run.path}`, "
            "replace it with --overwrite, or choose another output"
        )
    return f"output {run.path} is not empty and holds no run ({_listed(entries)}); choose another output"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _set_aside(run: RunDirectory, entries: list[str]) -> None:
    """Move a run out of the way, `run.json` first, so that none looks finished that is not whole."""
    foreign = [name for name in entries if name not in OWN_NAMES and not is_temporary(name)]
    if foreign or not {run.recipe.name, run.run_json.name} & set(entries):
        raise InputError(
            f"output {run.path} holds {_listed(foreign or entries)}, which --overwrite does not remove, since "
            f"{'that is no part of a run' if foreign else 'without recipe.yaml and run.json it is no run'}; "
            "move it away or choose another output"
        )
    own = sorted(set(entries) - {PREVIOUS}, key=lambda name: name != run.run_json.name)
    if (run.path / PREVIOUS).exists():
        # An attempt to replace the run that lies there already got no further than this one.
        for name in own:
            _remove(run.path / name)
        return
    moving = run.path / _MOVING
    moving.mkdir()
    for name in own:
        (run.path / name).rename(moving / name)
    moving.rename(run.path / PREVIOUS)


def _mend(run: RunDirectory) -> None:
    """Put a run back that was not wholly set aside, or whose successor had not begun."""
    for aside in (run.path / _MOVING, run.path / PREVIOUS):
        if aside.is_dir() and (aside.name == _MOVING or not run.recipe.exists()):
            for entry in sorted(aside.iterdir(), key=lambda entry: entry.name == run.run_json.name):
                entry.rename(run.path / entry.name)
            aside.rmdir()


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()
