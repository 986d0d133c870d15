"""Variants against variant b, those that failed among them; imports nothing heavy."""

from typing import Any

from benchmarks.variants import REFERENCE, VARIANTS

_FIGURES = (
    "seconds_per_epoch",
    "seconds_per_step",
    "tokens_per_second",
    "matmul_share",
    "peak_device_bytes",
    "peak_host_bytes",
    "ratio_to_b",
)


def failure(variant: str, device: str, reason: str) -> dict[str, Any]:
    """The record of a variant that could not be measured (out of memory, say): a table keeps it."""
    return {
        "variant": variant,
        "what": VARIANTS[variant],
        "device": device,
        **dict.fromkeys(_FIGURES),
        "error": reason,
    }


def add_ratios(records: list[dict[str, Any]]) -> None:
    """Set how many times faster than variant b each is, in place; None stays where either was not measured."""
    seconds = {line["variant"]: line["seconds_per_epoch"] for line in records}
    reference = seconds.get(REFERENCE)
    for line in records:
        if reference is not None and line["seconds_per_epoch"] is not None:
            line["ratio_to_b"] = reference / line["seconds_per_epoch"]
