"""What all variants of a run share; imports nothing heavy, since the parent process holds it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """What all variants of a run share.

    Attributes:
        device: "cpu" or "cuda".
        precision: name of the dtype of variants b to f.
        models: a phrase.
        matmul_rate: of the machine, FLOP/s.
        versions: software and hardware.
    """

    device: str
    precision: str
    models: str
    matmul_rate: float
    versions: dict[str, str]
