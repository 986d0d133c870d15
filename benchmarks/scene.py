"""What a measuring process works with: device, precision, models, rows and how much of them to run."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.effort import CPU, GPU, TOY, Effort
from benchmarks.models import Models, PretrainedModels, choose_models
from benchmarks.options import Options
from benchmarks.workload import (
    MEAN_TOKENS,
    TOY_EPOCH,
    Epoch,
    Workload,
    random_workload,
    read_lengths,
    synthetic_lengths,
    text_workload,
    word_workload,
)
from llm_neo.data import read_texts
from llm_neo.errors import InputError
from llm_neo.recipe import TextSource, load_recipe
from llm_neo.runtime import select_device, select_precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Scene:
    """The surroundings of every variant.

    Attributes:
        device: where it runs.
        dtype: of weights and products, but for those of variant a.
        models: teacher and student.
        workload: rows, and the epoch they stand for.
        effort: how much is run.
        options: what the user asked for.
    """

    device: torch.device
    dtype: torch.dtype
    models: Models
    workload: Workload
    effort: Effort
    options: Options


def set_scene(options: Options) -> Scene:
    """The scene of a command line; the same in every process.

    Raises:
        InputError: no such device, or a model or text that cannot be had.
    """
    device = select_device(options.device)
    models = choose_models(device, options.toy, options.seed)
    effort = TOY if options.toy else GPU if device.type == "cuda" else CPU
    dtype = select_precision("auto", device).dtype
    if isinstance(models, PretrainedModels):
        workload = _of_texts(models, options)
    else:
        workload = _of_lengths(models.teacher_config().vocab_size, options)
    return Scene(device, dtype, models, workload, effort, options)


def _of_texts(models: PretrainedModels, options: Options) -> Workload:
    from transformers import AutoTokenizer

    if options.data is not None:
        texts, name = _texts_of(options.data), f"text of {options.data.name}"
    else:
        snippets = load_recipe("quickstart").data.train
        source = TextSource(source=snippets.source, columns=snippets.columns, text=snippets.text)
        texts, name = [row.text[0] for row in read_texts(source).rows], "movie-review snippets of the quickstart"
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(models.source.folder)
    return text_workload(texts, tokenizer, Epoch(), name, options.seed)


def _of_lengths(vocabulary: int, options: Options) -> Workload:
    epoch = TOY_EPOCH if options.toy else Epoch()
    if options.lengths is None or options.toy:
        lengths = synthetic_lengths(epoch.rows, options.seed)
        name = f"random tokens, synthetic lengths (geometric, {MEAN_TOKENS} tokens on average)"
        return random_workload(lengths, vocabulary, epoch, name, options.seed)
    lengths = read_lengths(options.lengths)
    if options.data is None:
        return random_workload(
            lengths, vocabulary, epoch, f"random tokens, lengths of {options.lengths.name}", options.seed
        )
    texts = _texts_of(options.data)
    if len(texts) != len(lengths):
        raise InputError(
            f"--data {options.data} has {len(texts)} rows and --lengths {options.lengths} has {len(lengths)}; "
            "each row needs its own length"
        )
    name = f"words of {options.data.name} as tokens, lengths of {options.lengths.name}"
    return word_workload(texts, lengths, vocabulary, epoch, name, options.seed)


def _texts_of(file: Path) -> list[str]:
    return [row.text[0] for row in read_texts(TextSource(source=str(file), text="sentence")).rows]
