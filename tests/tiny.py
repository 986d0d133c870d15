"""Tiny random Llamas, tokenizers and a task that they can learn, made on the spot; every dimension a multiple of 64."""

import csv
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

GOOD = ["good", "great", "lovely", "fine", "superb", "bright"]
BAD = ["bad", "awful", "dull", "poor", "grim", "weak"]
NEUTRAL = ["the", "film", "plot", "is", "was", "and", "story", "actor", "it", "very", "a", "scene"]
WORDS = ["<unk>", "<s>", "</s>", *GOOD, *BAD, *NEUTRAL, "Review", ":", "N/A", "[MASK]"]


def tiny_tokenizer(folder: Path) -> None:
    """A word-level tokenizer that puts one <s> before every text, as Llama 3's does."""
    words = list(dict.fromkeys(WORDS))
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", words.index("<s>"))]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def tiny_config(layers: int = 2, **changes: object) -> LlamaConfig:
    """The shape: 64 words, width 128, two heads of 64."""
    shape = {
        "vocab_size": 64,
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
    }
    return LlamaConfig(**{**shape, **changes})


def tiny_llama(folder: Path, layers: int = 2, seed: int = 0, classes: list[str] | None = None) -> Path:
    """A random language model, or classifier where `classes` are named, with its tokenizer, in `folder`."""
    torch.manual_seed(seed)
    if classes is None:
        model: torch.nn.Module = LlamaForCausalLM(tiny_config(layers))
    else:
        names = dict(enumerate(classes))
        model = LlamaForSequenceClassification(
            tiny_config(layers, id2label=names, label2id={n: i for i, n in names.items()}, pad_token_id=2)
        )
    model.save_pretrained(folder)  # type: ignore[operator]
    tiny_tokenizer(folder)
    return folder


def toy_sentences(rows: int, seed: int = 0) -> list[tuple[str, str]]:
    """Sentences of 3 to 12 words with one telling word, labelled "negative" or "positive"."""
    draw = random.Random(seed)
    sentences = []
    for row in range(rows):
        words = draw.choices(NEUTRAL, k=draw.randint(2, 11))
        words.insert(draw.randrange(len(words) + 1), draw.choice(GOOD if row % 2 else BAD))
        sentences.append((" ".join(words), "positive" if row % 2 else "negative"))
    return sentences


def toy_file(path: Path, rows: int, seed: int = 0) -> Path:
    """The same as a TSV or CSV file with a header line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([("sentence", "label"), *toy_sentences(rows, seed)])
    return path
