"""How fast this machine multiplies matrices: the measure that every variant's work is held against."""

from typing import TYPE_CHECKING

import torch

from benchmarks.clock import Stopwatch
from benchmarks.shapes import layer_products

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SQUARE = 8192
"""Side of the square product that a GPU is also tried on."""

_REPEATS = 5
_LEAST_SECONDS = {"cpu": 0.1, "cuda": 0.02}


def matmul_rate(config: "PretrainedConfig", tokens: int, dtype: torch.dtype, device: torch.device) -> float:
    """The best rate over the products of the model's own layers (on a GPU a large square one too), FLOP/s.

    Args:
        config: of the model whose layers are tried.
        tokens: rows of the left matrix.
        dtype: of both matrices.
        device: where they are multiplied.
    """
    shapes = {(tokens, inputs, outputs) for inputs, outputs in layer_products(config)}
    if device.type == "cuda":
        shapes.add((SQUARE, SQUARE, SQUARE))
    return max(_rate(*shape, dtype, device) for shape in sorted(shapes))


def _rate(rows: int, inputs: int, outputs: int, dtype: torch.dtype, device: torch.device) -> float:
    """The best of some measurements of (rows, inputs) times (outputs, inputs) transposed, FLOP/s."""
    left = torch.randn(rows, inputs, device=device).to(dtype)
    right = torch.randn(outputs, inputs, device=device).to(dtype)
    products = 2
    seconds = _seconds(left, right, products, device)
    while seconds < _LEAST_SECONDS[device.type]:
        products *= 2
        seconds = _seconds(left, right, products, device)
    best = min(_seconds(left, right, products, device) for _ in range(_REPEATS))
    return 2.0 * rows * inputs * outputs * products / best


def _seconds(left: torch.Tensor, right: torch.Tensor, products: int, device: torch.device) -> float:
    with torch.no_grad(), Stopwatch(device) as watch:
        for _ in range(products):
            torch.nn.functional.linear(left, right)
    return watch.seconds
