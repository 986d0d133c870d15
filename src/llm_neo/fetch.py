"""Everything that a recipe names, brought to this machine ahead of the run."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llm_neo.assets import resolve_model
from llm_neo.data import fetch_source
from llm_neo.progress import Bar, Progress, SilentProgress
from llm_neo.recipe import Recipe, TextSource


@dataclass(frozen=True)
class Fetched:
    """One model or data source.

    Attributes:
        spec: as the recipe has it.
        keys: where the recipe has it.
        how: "fetched" = downloaded or converted now, "cached" = by an earlier call, "local" = the user's own file.
    """

    spec: str
    keys: tuple[str, ...]
    how: Literal["fetched", "cached", "local"]


def fetch(recipe: Recipe, progress: Progress | None = None) -> tuple[Fetched, ...]:
    """Download and convert the models and data sources of a recipe, so that its run needs no network.

    Args:
        recipe: as `load_recipe` gives it.
        progress: shown the downloads; told of conversions.

    Returns:
        What the recipe names, each once, in the recipe's order.

    Raises:
        InputError: something is not there, or cannot be fetched or converted.
        ResourceError: the disk is full.
    """
    sources = {f"data.{key}": getattr(recipe.data, key) for key in ("train", "validation", "unlabelled")}
    named = {key: source for key, source in sources.items() if isinstance(source, TextSource)}
    models = {"teacher.model": recipe.teacher.model, "student.model": recipe.student.model}
    specs = {key: source.source for key, source in named.items()} | models
    fetched = []
    for spec in dict.fromkeys(specs.values()):
        keys = tuple(key for key, other in specs.items() if other == spec)
        watched = _Watched(progress or SilentProgress())
        if keys[0] in models:
            resolve_model(spec, watched)
        else:
            fetch_source(named[keys[0]], watched)
        local = Path(spec).expanduser().exists()
        fetched.append(Fetched(spec, keys, "fetched" if watched.told else "local" if local else "cached"))
    return tuple(fetched)


class _Watched:
    """A `Progress` that notes whether it was told anything: only downloads and conversions speak here."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self.told = False

    def stage(self, name: str) -> None:
        """See `Progress`."""
        self._shown.stage(name)

    def say(self, message: str) -> None:
        """See `Progress`."""
        self.told = True
        self._shown.say(message)

    def bar(self, label: str, total: int | None, unit: str) -> AbstractContextManager[Bar]:
        """See `Progress`."""
        self.told = True
        return self._shown.bar(label, total, unit)
