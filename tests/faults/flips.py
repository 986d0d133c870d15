"""Random bytes changed in what a run wrote, and then a command that reads it: it says so, or nothing is different."""

import json
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from faults.children import Child, Ended, run
from faults.kills import words
from faults.material import Variant, result_of
from tiny import toy_sentences


@dataclass(frozen=True)
class Place:
    """Bytes to change, from `start` up to `end`, and the command that reads them.

    Attributes:
        read: runs it; gets a fresh folder for what it may write.
        same: whether a command that ended well gave what it gives from undamaged files.
    """

    file: Path
    start: int
    end: int
    read: Callable[[Path], Ended]
    same: Callable[[Path, Ended], bool]


def torture(recipe: Path, kinds: list[Variant], folder: Path, count: int) -> dict[str, int]:
    """So many flips, as many of each kind of file; returns the counts of `torture.json`."""
    draw = random.Random(7)
    done = {"flips": 0, "flips_detected": 0, "flips_harmless": 0, "flips_silent": 0}
    pools = _pools(recipe, {kind.name: kind for kind in kinds}, folder)
    for number in range(count):
        name = list(pools)[number % len(pools)]
        place = draw.choice(pools[name])
        where, mask = draw.randrange(place.start, place.end), draw.randrange(1, 256)
        scratch = folder / f"flip-{number}"
        with_flip(place.file, where, mask, lambda: _judge(name, place, where, mask, scratch, done))  # noqa: B023
        shutil.rmtree(scratch, ignore_errors=True)
    return done


def with_flip(file: Path, where: int, mask: int, act: Callable[[], None]) -> None:
    """Change one byte, act, and change it back."""
    whole = file.read_bytes()
    file.write_bytes(whole[:where] + bytes([whole[where] ^ mask]) + whole[where + 1 :])
    try:
        act()
    finally:
        file.write_bytes(whole)


def _judge(name: str, place: Place, where: int, mask: int, scratch: Path, done: dict[str, int]) -> None:
    ended = place.read(scratch)
    done["flips"] += 1
    said = ("damaged", "not as the run wrote it", "is not there", "names a sha256", "holds no run")
    refused = ended.code == 2 and any(text in ended.stderr for text in (*said, place.file.name))
    passed_over = name == "checkpoints" and ended.code == 0 and any(text in ended.stderr for text in said)
    equal = ended.code == 0 and place.same(scratch, ended)
    if refused or (passed_over and equal):
        done["flips_detected"] += 1
    elif equal:
        done["flips_harmless"] += 1
    else:
        done["flips_silent"] += 1
        print(f"{name}: byte {where} of {place.file} xor {mask}: exit {ended.code}", ended.stderr[-2000:])


def _pools(recipe: Path, kinds: dict[str, Variant], folder: Path) -> dict[str, list[Place]]:
    """Where bytes are changed, by kind of file; files count alike, however long they are."""
    homes = {name: folder / "undisturbed" / name for name in kinds}
    tuned, converted = homes["tuned"], homes["converted"]
    asked = _Asked(tuned, folder / "texts.tsv")
    student = tuned / "run" / "student"
    adapter, head = _parts(student / "adapter_model.safetensors")
    again = {name: _Again(recipe, kinds[name], homes[name]) for name in kinds}
    interrupted = _interrupted(recipe, kinds["tuned"], folder / "interrupted")
    newest = (
        interrupted.run
        / "checkpoints"
        / "student"
        / (interrupted.run / "checkpoints" / "student" / "LATEST").read_text()
    )
    (model,) = (path for path in (converted / "cache" / "models").iterdir() if path.is_dir())
    (teacher,) = (path for path in (tuned / "cache" / "teachers").iterdir() if path.is_dir())
    targets = [
        file
        for name in kinds
        for file in (homes[name] / "cache" / "targets").rglob("*.*")
        if file.is_file() and file.stat().st_size
    ]
    owner = {file: next(name for name in kinds if homes[name] in file.parents) for file in targets}
    # The targets would be reused without the teacher being read.
    anew = _Again(recipe, kinds["tuned"], tuned, ("data.validation.limit=50",))
    return {
        "targets": [again[owner[file]].place(file) for file in targets],
        "checkpoints": [interrupted.place(file) for file in (*sorted(newest.iterdir()), newest.parent / "LATEST")],
        "adapter": [
            *(asked.place(student / "adapter_model.safetensors", *span) for span in adapter),
            asked.place(student / "adapter_config.json"),
            anew.place(teacher / "adapter_model.safetensors"),
        ],
        "head": [asked.place(student / "adapter_model.safetensors", *span) for span in head],
        "converted": [
            *(again["converted"].place(file) for file in sorted(model.iterdir()) if "tokenizer" not in file.name),
            *(asked.place(file) for file in sorted((student / "base").iterdir()) if "tokenizer" not in file.name),
        ],
        "tokenizer": [
            *(asked.place(file) for file in sorted(student.glob("tokenizer*"))),
            *(again["converted"].place(file) for file in sorted(model.glob("tokenizer*"))),
        ],
        "run.json": [asked.place(tuned / "run" / "run.json")],
    }


def _parts(file: Path) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The bytes of each adapter tensor (and of the header), and of each head tensor."""
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    shifted = {name: (8 + length + start, 8 + length + end) for name, (start, end) in spans.items()}
    head = [span for name, span in shifted.items() if "score" in name]
    return [(0, 8 + length), *(span for name, span in shifted.items() if "score" not in name)], head


class _Asked:
    """`predict` and `evaluate` of a finished run, in turn."""

    def __init__(self, home: Path, texts: Path) -> None:
        texts.write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in toy_sentences(30, 9)))
        self.home, self.turn = home, 0
        run_ = str(home / "run")
        self.ways = [
            ["predict", run_, "--file", str(texts), "--json"],
            ["evaluate", run_, "--data", str(texts), "--json"],
        ]
        self.expected = [self._ask(way, home / "told").stdout for way in self.ways]
        assert all(self.expected)

    def _ask(self, way: list[str], told: Path) -> Ended:
        return run(way, told, self.home / "cache")

    def place(self, file: Path, start: int = 0, end: int | None = None) -> Place:
        return Place(file, start, end or file.stat().st_size, self._read, self._same)

    def _read(self, scratch: Path) -> Ended:
        self.turn += 1
        return self._ask(self.ways[self.turn % 2], scratch)

    def _same(self, _: Path, ended: Ended) -> bool:
        return ended.stdout == self.expected[self.turn % 2]


class _Again:
    """`distill` into another folder, with what the first run left in the cache."""

    def __init__(self, recipe: Path, kind: Variant, home: Path, changes: tuple[str, ...] = ()) -> None:
        self.home, self.words = home, ["distill", str(recipe), *kind.changes, *changes]
        self.expected = result_of(home / "run")

    def place(self, file: Path) -> Place:
        return Place(file, 0, file.stat().st_size, self._read, self._same)

    def _read(self, scratch: Path) -> Ended:
        return run([*self.words, f"output={scratch / 'run'}"], scratch / "told", self.home / "cache")

    def _same(self, scratch: Path, _: Ended) -> bool:
        return result_of(scratch / "run") == self.expected


class _Resumed:
    """`distill --resume` of a copy of an interrupted run."""

    def __init__(self, run_: Path, cache: Path) -> None:
        self.run, self.cache = run_, cache
        undamaged = run_.parent / "undamaged"
        self.read(undamaged)
        self.expected = result_of(undamaged / "run")

    def place(self, file: Path) -> Place:
        return Place(file, 0, file.stat().st_size, self.read, self._same)

    def read(self, scratch: Path) -> Ended:
        shutil.copytree(self.run, scratch / "run")
        return run(["distill", "--resume", str(scratch / "run")], scratch / "told", self.cache)

    def _same(self, scratch: Path, _: Ended) -> bool:
        return result_of(scratch / "run") == self.expected


def _interrupted(recipe: Path, kind: Variant, home: Path) -> _Resumed:
    """A run that was ended between two checkpoints of its student and the end."""
    import signal

    child = Child(words(recipe, kind, home), home / "told", home / "cache")
    child.wait_for("bar evaluation")
    child.send(signal.SIGTERM)
    ended = child.wait()
    assert ended.code == 143, ended.stderr
    return _Resumed(home / "run", home / "cache")
