"""Load a pretrained decoder and its tokenizer, whole or not at all."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llm_neo import tasks
from llm_neo.errors import InputError
from llm_neo.models.quantization import Quantization, keep_weights_as_stored, quantization_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


_SHOWN_CHARACTERS = 250
_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken")


@dataclass(frozen=True)
class Placement:
    """How a base model lies in memory.

    Attributes:
        device: where it is.
        dtype: of the weights that are not quantised, and of the arithmetic.
        quantization: "nf4", "int8" or "none".
    """

    device: torch.device
    dtype: torch.dtype
    quantization: Quantization = "none"


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer.

    Attributes:
        model: in evaluation mode, every parameter frozen.
        tokenizer: the one saved beside the model; a padding token is set.
        fresh_head: the classification head was not in the files and is random.
        parameters: weights, however few bits each takes, without adapters.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    fresh_head: bool
    parameters: int

    @property
    def resident_bytes(self) -> int:
        """Bytes of the weights where they lie, the constants of quantised ones included."""
        states = [getattr(parameter, "quant_state", None) for parameter in self.model.parameters()]
        constants = [tensor for state in states if state is not None for tensor in _constants(state)]
        tensors = {id(t): t for t in (*self.model.parameters(), *self.model.buffers(), *constants)}
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return int(self.model.config.num_hidden_layers)


def _constants(state: Any) -> Iterator[torch.Tensor]:
    """The tensors of a bitsandbytes quantisation state: scales, and with double quantisation the scales of these."""
    for value in vars(state).values():
        if isinstance(value, torch.Tensor):
            yield value
    if getattr(state, "nested", False):
        yield from _constants(state.state2)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' bars, warnings and load reports off the screen; what they would say is checked instead."""
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    bitsandbytes = logging.getLogger("bitsandbytes")
    level = bitsandbytes.level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    bitsandbytes.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        bitsandbytes.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def named_failures(what: str) -> Iterator[None]:
    """Turn what the loaders raise for a bad model folder into one sentence that begins with `what`.

    Raises:
        InputError: whatever they raised, but for the system's own errors and a lack of memory.
    """
    try:
        with quiet():
            yield
    except Exception as error:  # of four libraries; the tokenizers' is no more than an Exception
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or getattr(error, "errno", None) is not None:
            raise
        raise InputError(f"{what} cannot be loaded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first line of what a loader says, and what to do."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .:")
    if "custom code" in said:
        return "it needs code of its own; read that code, and set runtime.trust_remote_code=true if you trust it"
    # A KeyError says no more than the key.
    said = f"{type(error).__name__}: {said}" if isinstance(error, KeyError) else said
    said = said if len(said) <= _SHOWN_CHARACTERS else f"{said[:_SHOWN_CHARACTERS]}..."
    return f"{said}; check its files, or choose another model"


def load_config(folder: Path, spec: str, trust_remote_code: bool) -> "PretrainedConfig":
    """The model's configuration.

    Raises:
        InputError: none there, or of an architecture that transformers does not know.
    """
    from transformers import AutoConfig

    with named_failures(f"the model {spec}"):
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return config


def is_classifier(config: "PretrainedConfig") -> bool:
    """Whether the files hold a sequence classifier already."""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or [])


def load_tokenizer(
    folder: Path, spec: str, config: "PretrainedConfig", max_length_tokens: int, trust_remote_code: bool
) -> "PreTrainedTokenizerBase":
    """The model's tokenizer, with a padding token (the end of text where it has none) and the length limit.

    Raises:
        InputError: no tokenizer in the folder, or one with more tokens than the model has embeddings.
    """
    from transformers import AutoTokenizer

    # Without one, transformers may make up a tokenizer of three tokens.
    if not trust_remote_code and not any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):
        raise InputError(f"the model {spec} has no tokenizer; put the files of its tokenizer into its folder")
    with named_failures(f"the tokenizer of {spec}"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    embeddings = getattr(config.get_text_config(), "vocab_size", None)
    if embeddings is None:
        raise InputError(f"the model {spec} reads no text (it is a {config.model_type}); choose a language model")
    if len(tokenizer) > embeddings:
        raise InputError(
            f"the tokenizer of {spec} has {len(tokenizer)} tokens but the model only {embeddings} embeddings; they do "
            "not belong together: put the model's own tokenizer into its folder"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise InputError(f"the tokenizer of {spec} has neither a padding nor an end-of-text token; set one")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = max_length_tokens
    return tokenizer


def _load_weights(
    auto_class: type[Any],
    folder: Path,
    spec: str,
    config: "PretrainedConfig",
    where: Placement,
    trust_remote_code: bool,
) -> tuple["PreTrainedModel", set[str]]:
    """The model in evaluation mode, frozen, and the names of the tensors that the files lack."""
    with named_failures(f"the model {spec}"):
        model, report = auto_class.from_pretrained(
            folder,
            config=config,
            dtype=where.dtype,
            quantization_config=quantization_config(where.quantization, where.dtype),
            device_map={"": where.device},
            attn_implementation="sdpa",
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
    keep_weights_as_stored(model)
    reshaped = {str(entry[0]) for entry in report["mismatched_keys"]}
    model.requires_grad_(False)
    return model.eval(), set(report["missing_keys"]) | reshaped


def load_classifier(
    folder: Path,
    spec: str,
    classes: Sequence[str],
    where: Placement,
    *,
    max_length_tokens: int,
    seed: int,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """A decoder with a classification head; a head that the files lack is drawn from `seed`, in float32.

    Args:
        folder: configuration, safetensors and tokenizer.
        spec: what the recipe calls the model, for messages.
        classes: names in label order.
        where: device, dtype and quantisation of the base.
        max_length_tokens: the limit that the tokenizer is saved with.
        seed: of a fresh head.

    Raises:
        InputError: the folder holds no whole decoder.
    """
    config = load_config(folder, spec, trust_remote_code)
    tokenizer = load_tokenizer(folder, spec, config, max_length_tokens, trust_remote_code)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: index for index, name in enumerate(classes)}
    # A regression model as the base would make `pipeline` show its logits as they are.
    config.problem_type = "single_label_classification"
    config.pad_token_id = tokenizer.pad_token_id
    model, missing = _load_weights(tasks.model_class(), folder, spec, config, where, trust_remote_code)
    tasks.check_head(model, spec)
    fresh = {name for name in missing if name.startswith(f"{tasks.HEAD}.")}
    _refuse_incomplete(spec, missing - fresh)
    head = getattr(model, tasks.HEAD)
    head.to(torch.float32)
    if fresh:
        # Drawn on the CPU, so that a seed means the same head on every device.
        draw = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed))
        head.weight.data.copy_(draw * getattr(config, "initializer_range", 0.02))
    return LoadedModel(model, tokenizer, bool(fresh), int(model.num_parameters()))


def load_language_model(
    folder: Path, spec: str, where: Placement, *, max_length_tokens: int, trust_remote_code: bool = False
) -> LoadedModel:
    """A decoder with its language-model head, to be prompted.

    Raises:
        InputError: the folder holds no whole language model (a classifier, for instance).
    """
    from transformers import AutoModelForCausalLM

    config = load_config(folder, spec, trust_remote_code)
    tokenizer = load_tokenizer(folder, spec, config, max_length_tokens, trust_remote_code)
    model, missing = _load_weights(AutoModelForCausalLM, folder, spec, config, where, trust_remote_code)
    _refuse_incomplete(spec, missing)
    return LoadedModel(model, tokenizer, False, int(model.num_parameters()))


def _refuse_incomplete(spec: str, missing: set[str]) -> None:
    if missing:
        raise InputError(
            f"the files of {spec} lack {len(missing)} tensors of the model or have them in another shape, for instance "
            f"{sorted(missing)[0]}; they would be random: download the model again or choose another"
        )
