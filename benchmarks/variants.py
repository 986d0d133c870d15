"""The six ways that are compared; imports nothing heavy, so that the parent process stays small."""

from typing import Literal

VARIANTS = {
    "a": "seed: load_in_4bit alone (fp4, float32), teacher inline, padded to 128",
    "b": "seed, generously: NF4, bf16, teacher inline, padded to 128",
    "c": "as b, padded to the longest of the batch",
    "d": "KD without LoRA: bf16 teacher inline, all student weights, padded to 128",
    "e": "LLM-Neo, plain engine: rows scored once, packed steps",
    "f": "LLM-Neo, captured engine (fused on a CPU): rows scored once, packed steps",
}
"""What each letter stands for."""

BASELINES = "abcd"
REFERENCE = "b"
"""The variant that the others are divided by."""

ENGINES: dict[str, Literal["plain", "captured"]] = {"e": "plain", "f": "captured"}
