"""Texts to predict on: words of the command line, a file, or the lines of stdin."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from llm_neo.data import read_texts
from llm_neo.data.table import is_text, shown
from llm_neo.errors import InputError
from llm_neo.recipe import TextSource, load_recipe
from llm_neo.run.directory import RunDirectory

Texts = tuple[str, ...]


def texts_for(run: Path, words: Sequence[str], file: Path | None, stdin: BinaryIO) -> list[Texts]:
    """The texts to predict on, stripped; one of one or two parts for each row, as the run was trained.

    Args:
        run: a run directory; its recipe tells whether a row is a pair and what the text columns are called.
        words: texts themselves; of a pair the two parts are separated by a TAB.
        file: .txt with one text a line, or a table with the text columns of the recipe.
        stdin: read, one text a line, when there are neither words nor a file.

    Raises:
        InputError: there is no run, no text, or one that cannot be used; file and line are named.
    """
    recipe = RunDirectory(run).recipe
    if not recipe.is_file():
        raise InputError(f"{run} holds no run: it has no recipe.yaml; name the folder of a finished run")
    columns = load_recipe(str(recipe)).data.train.text
    if words and file is not None:
        raise InputError("texts and --file exclude one another; give one of them")
    if file is not None and not file.is_file():
        raise InputError(f"--file {file} is not a file; correct its path")
    if file is not None and file.suffix.lower() != ".txt":
        return [row.text for row in read_texts(TextSource(source=str(file), text=columns)).rows]
    parts = 1 if isinstance(columns, str) else 2
    if words:
        lines: Iterable[tuple[str, str]] = ((f"text {i}", word) for i, word in enumerate(words, start=1))
    else:
        name = "stdin" if file is None else str(file)
        lines = _lines(stdin.read() if file is None else file.read_bytes(), name)
    texts = [_row(where, line, parts) for where, line in lines]
    if not texts:
        raise InputError("there is no text; give some as arguments, by --file, or one a line on stdin")
    return texts


def _lines(content: bytes, name: str) -> Iterator[tuple[str, str]]:
    """Each line with where it is; empty lines at the end are none."""
    for number, line in enumerate(content.rstrip(b"\r\n").split(b"\n") if content.strip() else (), start=1):
        where = f"{name}, line {number}"
        try:
            yield where, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: {shown(line)} is not UTF-8; save it as UTF-8") from error


def _row(where: str, line: str, parts: int) -> Texts:
    texts = tuple(part.strip() for part in (line.split("\t") if parts == 2 else [line]))
    if len(texts) != parts:
        raise InputError(f"{where}: {shown(line)} must be two texts with one TAB between them")
    for text in texts:
        if not text or not is_text(text):
            raise InputError(f"{where}: {shown(line)} holds an empty or unreadable text; correct or remove it")
    return texts
