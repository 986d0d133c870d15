"""What a GGUF file says about its tokenizer, and the cure of what transformers' reader loses of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_neo.errors import InputError

# Vocabularies trained with every digit split off on its own before the byte-level step (llama.cpp's groups of
# pre-tokenizers); transformers rebuilds them as plain GPT-2.
_DIGIT_BY_DIGIT = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
_PLAIN_GPT2 = frozenset({"gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de"})

# SmolLM2's special tokens, for files that do not name them.
_SMOLLM_TOKENS = {"bos": "<|im_start|>", "eos": "<|im_end|>", "padding": "<|im_end|>"}


@dataclass(frozen=True)
class TokenizerFacts:
    """What the file says about its tokenizer.

    Attributes:
        pre: the name of the pre-tokenizer, empty where the file is silent.
        ids: token ids by role (`bos`, `eos`, `padding`, `unknown`); a role the file does not name is missing.
        tokens: the text of each of those ids.
        adds_bos: whether every text begins with the bos token.
        adds_eos: whether every text ends with the eos token.
        context_tokens: the longest text the model was trained for, None where the file is silent.
        byte_level: whether the vocabulary is a byte-level BPE (as GPT-2's).
    """

    pre: str
    ids: Mapping[str, int]
    tokens: Mapping[str, str]
    adds_bos: bool
    adds_eos: bool
    context_tokens: int | None
    byte_level: bool


def read_tokenizer_facts(path: Path) -> TokenizerFacts:
    """Read `tokenizer.ggml.*` and the context length.

    Args:
        path: the GGUF file.

    Returns:
        What it says, with llama.cpp's defaults where it is silent, and SmolLM2's for SmolLM2.

    Raises:
        InputError: the file cannot be parsed or has no vocabulary.
    """
    try:
        values, vocabulary, context_tokens = _read_fields(path)
        pre = str(values.get("pre", ""))
        named = [role for role in ("bos", "eos", "padding", "unknown") if f"{role}_token_id" in values]
        ids = {role: int(values[f"{role}_token_id"]) for role in named}
        if pre == "smollm":
            _add_missing_ids(ids, vocabulary)
        tokens = {role: vocabulary[index] for role, index in ids.items()}
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise InputError(
            f"the GGUF file {path} is damaged or incomplete ({type(error).__name__}: {error}); fetch it again"
        ) from error
    byte_level = values.get("model") == "gpt2"
    # llama.cpp's defaults for files without the flag: sentencepiece and Llama 3 vocabularies begin with bos.
    silent = not byte_level or pre in ("llama3", "llama-v3", "llama-bpe")
    # SmolLM2 files say no, but classification needs one token that every text begins with.
    adds_bos = pre == "smollm" or bool(values.get("add_bos_token", silent))
    return TokenizerFacts(
        pre=pre,
        ids=ids,
        tokens=tokens,
        adds_bos=adds_bos and "bos" in ids,
        adds_eos=bool(values.get("add_eos_token", False)) and "eos" in ids,
        context_tokens=context_tokens,
        byte_level=byte_level,
    )


def _read_fields(path: Path) -> tuple[dict[str, Any], list[str], int | None]:
    """The single values of `tokenizer.ggml.*` by their last name, the vocabulary, and the context length."""
    from gguf import GGUFReader

    prefix = "tokenizer.ggml."
    fields = GGUFReader(path).fields
    values = {
        name.removeprefix(prefix): field.contents()
        for name, field in fields.items()
        if name.startswith(prefix) and len(field.data) <= 1
    }
    vocabulary = fields[f"{prefix}tokens"].contents()
    context = fields.get(f"{fields['general.architecture'].contents()}.context_length")
    return values, vocabulary, None if context is None else int(context.contents())


def _add_missing_ids(ids: dict[str, int], vocabulary: list[str]) -> None:
    for role, token in _SMOLLM_TOKENS.items():
        if role not in ids and token in vocabulary:
            ids[role] = vocabulary.index(token)


def cure_tokenizer(tokenizer: Any, facts: TokenizerFacts) -> None:
    """Restore the special tokens, the digit rule and the bos token that the GGUF route loses.

    A pair of texts gets the bos token before each, as in Llama 3's own tokenizer.

    Args:
        tokenizer: a fast tokenizer of transformers, changed in place.
        facts: what the file says.
    """
    from tokenizers import pre_tokenizers, processors

    for name, role in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        setattr(tokenizer, f"{name}_token", facts.tokens.get(role))
    tokenizer.model_max_length = facts.context_tokens or tokenizer.model_max_length
    backend = tokenizer.backend_tokenizer
    if facts.byte_level and facts.pre in _DIGIT_BY_DIGIT:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    tokenizer.add_bos_token, tokenizer.add_eos_token = facts.adds_bos, facts.adds_eos
    for name in ("local_files_only", "is_local"):
        tokenizer.init_kwargs.pop(name, None)
    single, second = (_with_special_tokens(facts, letter, segment) for letter, segment in (("A", 0), ("B", 1)))
    # Set after the flags, whose setters write a template of their own.
    backend.post_processor = processors.TemplateProcessing(
        single=single,
        pair=single + second,
        special_tokens=[
            (facts.tokens[role], facts.ids[role])
            for role, used in (("bos", facts.adds_bos), ("eos", facts.adds_eos))
            if used
        ],
    )


def _with_special_tokens(facts: TokenizerFacts, letter: str, segment: int) -> list[str]:
    """One text of the post-processor's template, such as `<s>:0 $A:0`."""
    before = [f"{facts.tokens['bos']}:{segment}"] if facts.adds_bos else []
    after = [f"{facts.tokens['eos']}:{segment}"] if facts.adds_eos else []
    return [*before, f"${letter}:{segment}", *after]


def knows_pre_tokenizer(tokenizer: Any, facts: TokenizerFacts) -> bool:
    """Whether the words are split as the vocabulary was trained.

    Args:
        tokenizer: after `cure_tokenizer`.
        facts: what the file says.

    Returns:
        False where the file names a rule, but the tokenizer has a bare ByteLevel, which is GPT-2's.
    """
    from tokenizers import pre_tokenizers

    fallback = isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)
    return not facts.byte_level or not fallback or facts.pre in _PLAIN_GPT2
