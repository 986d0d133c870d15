"""The only module that says how few bits a frozen weight has: NF4 (QLoRA), int8 (LLM.int8) or none."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from llm_neo.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig

Quantization = Literal["nf4", "int8", "none"]


def is_available() -> bool:
    """Whether bitsandbytes, which every choice but "none" needs, is installed."""
    return find_spec("bitsandbytes") is not None


def quantization_config(kind: Quantization, compute_dtype: "torch.dtype") -> "BitsAndBytesConfig | None":
    """What transformers needs to quantise linear weights while it loads them; the head is left as it is.

    NF4 with double quantisation follows Dettmers et al. 2023 (QLoRA), section 3: 4.127 bits a weight. No list
    of modules to skip is given, because such a list replaces the automatic one and the head would become 4-bit.

    Args:
        kind: "nf4", "int8" or "none".
        compute_dtype: the dtype that NF4 weights are restored to for each product.

    Raises:
        InputError: the choice needs bitsandbytes and it is not installed.
    """
    if kind == "none":
        return None
    if not is_available():
        raise InputError(
            f"teacher.quantization: {kind} needs bitsandbytes, which is not installed here; "
            "pip install bitsandbytes, or choose teacher.quantization=none"
        )
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def keep_weights_as_stored(model: "torch.nn.Module") -> int:
    """Keep bitsandbytes from repacking 4-bit weights in place on processors with AVX512-BF16.

    The repacked form cannot be saved or trained on: a later `state_dict()` would write ruined weights.

    Returns:
        The number of 4-bit layers in `model`.
    """
    layers: list[Any] = [layer for layer in model.modules() if hasattr(layer, "support_avx512bf16_for_cpu")]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return len(layers)


def waits_for_host(model: "torch.nn.Module") -> bool:
    """Whether a product of the model looks at values on the host, as LLM.int8's search for outliers does."""
    return any(type(module).__name__ == "Linear8bitLt" for module in model.modules())
