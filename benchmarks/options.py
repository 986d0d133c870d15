"""The command line of the benchmark."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.variants import VARIANTS

LENGTHS_VARIABLE = "LLM_NEO_BENCH_LENGTHS"


@dataclass(frozen=True)
class Options:
    """What to measure, how much of it and where the results go.

    Attributes:
        device: "auto", "cpu" or "cuda".
        out: the folder of the results.
        variants: letters, in the order of measuring.
        steps: timed steps of each variant; None = what suits the device.
        growth: also measure how the time grows with the problem.
        toy: tiny random models on the CPU, to see that everything works.
        data: labelled text, TSV with the header `sentence<TAB>label`; beside `lengths`, whose words stand for tokens.
        lengths: a token count on each line, for the models of the GPU, which have no tokenizer.
        score_rows: rows that e and f score; None = what suits the device, 0 = all.
        whole_epoch: letters among e and f that score and train a whole epoch instead of a part; it needs as many rows.
        growth_engine: "plain" or "captured" (which is the fused one on a CPU).
        seed: of weights, tokens and orders.
    """

    device: str
    out: Path
    variants: str
    steps: int | None
    growth: bool
    toy: bool
    data: Path | None
    lengths: Path | None
    score_rows: int | None
    whole_epoch: str
    growth_engine: Literal["plain", "captured"]
    seed: int


def parse(words: Sequence[str]) -> Options:
    """The options that the words of a command line say; a mistake ends the process with status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what a distillation run costs.")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench"), help="folder of the results (default %(default)s)"
    )
    parser.add_argument("--variants", type=_letters, default="".join(VARIANTS), help="letters of abcdef, or none")
    parser.add_argument("--steps", type=_positive, help="timed steps of each variant")
    parser.add_argument("--growth", action=argparse.BooleanOptionalAction, default=True, help="also the growth curves")
    parser.add_argument("--toy", action="store_true", help="tiny random models on the CPU")
    parser.add_argument("--data", type=_file, help="TSV, header sentence<TAB>label: the text of the rows")
    parser.add_argument(
        "--lengths", type=_file, help=f"tokens of a row on each line, for the GPU (or ${LENGTHS_VARIABLE})"
    )
    parser.add_argument("--score-rows", type=_whole, help="rows that e and f score; 0 = all")
    parser.add_argument(
        "--whole-epoch", nargs="?", const="f", default="", type=_letters, help="letters that train a whole epoch (f)"
    )
    parser.add_argument("--growth-engine", choices=("plain", "captured"), default="captured")
    parser.add_argument("--seed", type=_whole, default=0)
    found = parser.parse_args(words)
    if found.lengths is None and os.environ.get(LENGTHS_VARIABLE):
        try:
            found.lengths = _file(os.environ[LENGTHS_VARIABLE])
        except argparse.ArgumentTypeError as error:
            parser.error(f"{LENGTHS_VARIABLE}: {error}")
    if found.toy and found.device == "cuda":
        parser.error("--toy runs on the CPU; leave --device cuda out")
    return Options(**{**vars(found), "device": "cpu" if found.toy else found.device})


def _letters(word: str) -> str:
    letters = "" if word == "none" else word.replace(",", "")
    odd = sorted(set(letters) - set(VARIANTS))
    if odd or len(set(letters)) < len(letters):
        raise argparse.ArgumentTypeError(f"{word!r} must be letters of {''.join(VARIANTS)}, each once, or none")
    return letters


def _file(word: str) -> Path:
    path = Path(word)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"the file {word} is not there")
    return path


def _whole(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} must be a whole number, 0 or more")
    return int(word)


def _positive(word: str) -> int:
    if (number := _whole(word)) == 0:
        raise argparse.ArgumentTypeError("0 must be 1 or more")
    return number
