"""Linear layers that read the same input (q, k and v; gate and up) as one product, their LoRA branches as another.

Shapes: T tokens, I input width, O output widths of the layers together, N layers, R rank.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_neo.models.dropout import DroppedBranches, dropped

_POINTWISE_RANK = 8
"""Up to this many terms the compiler of PyTorch writes a sum out in full."""


class Adapters(NamedTuple):
    """The LoRA branches of layers with one input, N of them; all have one rank, scale and dropout.

    Attributes:
        widths: outputs of each layer, with a branch or not.
        down: of each layer lora_A (R, I); None = it has no branch.
        up: of each layer lora_B (O_n, R); None likewise.
        scale: alpha / rank.
        dropout: share of the input's values that a branch does not see while training.
    """

    widths: tuple[int, ...]
    down: tuple[Tensor | None, ...]
    up: tuple[Tensor | None, ...]
    scale: float
    dropout: float


class Projection(NamedTuple):
    """N layers with one input.

    Attributes:
        weight: (O, I), frozen; None = the layers are called one by one (quantised or trained ones).
        bias: (O,) or None.
        layers: the frozen layers themselves, where there is no joint weight.
        adapters: their LoRA branches, or None.
    """

    weight: Tensor | None
    bias: Tensor | None
    layers: tuple[Any, ...]
    adapters: Adapters | None


def joined(layers: Sequence[nn.Module]) -> Projection:
    """The projection of some layers, plain or with peft's LoRA; frozen plain weights move into one matrix.

    The layers' own weights become views of that matrix, so that nothing lies in memory twice.

    Raises:
        NotImplementedError: something that this form does not compute, named.
    """
    bases = tuple(_base(layer) for layer in layers)
    adapters = _adapters(layers)
    if not all(type(base) is nn.Linear and not any(p.requires_grad for p in base.parameters()) for base in bases):
        return Projection(None, None, bases, adapters)
    return Projection(_one_matrix([base.weight for base in bases]), _one_bias(bases), (), adapters)


def project(x_TI: Tensor, projection: Projection, *, training: bool, onto: Tensor | None = None) -> Tensor:
    """All outputs side by side, (T, O), added to `onto` where it is given."""
    if projection.weight is not None:
        if onto is not None and projection.bias is None and projection.adapters is None and _plain(x_TI, onto):
            return torch.addmm(onto, x_TI, projection.weight.t())
        out_TO = F.linear(x_TI, projection.weight, projection.bias)
    else:
        outputs = [layer(x_TI) for layer in projection.layers]
        out_TO = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
    if projection.adapters is not None:
        out_TO = _adapted(x_TI, out_TO, projection.adapters, training)
    return out_TO if onto is None else onto + out_TO


def _plain(x: Tensor, onto: Tensor) -> bool:
    """Whether adding within the product changes no dtype."""
    return x.dtype == onto.dtype and not torch.is_autocast_enabled(x.device.type)


def project_each(x_TI: Tensor, projection: Projection, *, training: bool) -> tuple[Tensor, ...]:
    """The outputs of each layer apart, (T, O_n), without a joint copy where they have no joint weight."""
    assert projection.weight is None, "a joint weight gives its outputs side by side: project()"
    adapters = projection.adapters
    outputs = [layer(x_TI) for layer in projection.layers]
    if adapters is None:
        return tuple(outputs)
    alone = [
        adapters._replace(widths=(width,), down=(down,), up=(up,))
        for width, down, up in zip(adapters.widths, adapters.down, adapters.up, strict=True)
    ]
    return tuple(
        out if branch.down[0] is None else _adapted(x_TI, out, branch, training)
        for out, branch in zip(outputs, alone, strict=True)
    )


def _adapted(x_TI: Tensor, out_TO: Tensor, adapters: Adapters, training: bool) -> Tensor:
    """Add `scale * up(down(x))` of each layer to its outputs; the N branches are one small product each way."""
    downs = [down for down in adapters.down if down is not None]
    if torch.compiler.is_compiling() and downs[0].shape[0] <= _POINTWISE_RANK:
        return _adapted_pointwise(x_TI, out_TO, adapters, training)
    dtype = x_TI.dtype
    up_OR = _joint_up(adapters, downs[0]).to(dtype)
    if training and adapters.dropout > 0:
        # Each branch drops values of its own, as its own layer of peft would.
        down_NRI, keep = torch.stack(downs).to(dtype), 1.0 - adapters.dropout
        if x_TI.device.type == "cpu" and dtype == out_TO.dtype and x_TI.element_size() == 2:
            out: Tensor = DroppedBranches.apply(x_TI, out_TO, down_NRI, up_OR, keep, adapters.scale)  # type: ignore[no-untyped-call]
            return out
        kept_NTI = dropped((len(downs), *x_TI.shape), keep, x_TI)
        low_TR = (kept_NTI @ down_NRI.transpose(1, 2)).transpose(0, 1).reshape(len(x_TI), -1)
    else:
        low_TR = F.linear(x_TI, torch.cat(downs).to(dtype))
    return torch.addmm(out_TO, low_TR, up_OR.t(), alpha=adapters.scale)


def _joint_up(adapters: Adapters, like: Tensor) -> Tensor:
    """The upper halves as one matrix (O, N R), zero where an output is not its branch's."""
    blocks = [
        # No columns: outputs that no branch reaches.
        like.new_zeros(width, 0) if up is None else up
        for width, up in zip(adapters.widths, adapters.up, strict=True)
    ]
    return blocks[0] if len(blocks) == 1 else torch.block_diag(*blocks)


def _adapted_pointwise(x_TI: Tensor, out_TO: Tensor, adapters: Adapters, training: bool) -> Tensor:
    """The same written out as products and sums, for a compiler that fuses them into their neighbours.

    A matrix unit has nothing to do at rank 4; as sums the up half becomes part of what reads the outputs, and the
    down half is one pass over the input. Sums are float32.
    """
    drops = training and adapters.dropout > 0
    pieces = []
    for width, down_RI, up_OR in zip(adapters.widths, adapters.down, adapters.up, strict=True):
        if down_RI is None or up_OR is None:
            pieces.append(x_TI.new_zeros(len(x_TI), width, dtype=torch.float32))
            continue
        kept_TI = dropped(tuple(x_TI.shape), 1.0 - adapters.dropout, x_TI) if drops else x_TI
        low_TR = (kept_TI[:, None, :].float() * down_RI[None]).sum(dim=-1)
        pieces.append((low_TR[:, None, :] * up_OR[None]).sum(dim=-1))
    return (out_TO.float() + adapters.scale * torch.cat(pieces, dim=-1)).to(out_TO.dtype)


def _one_matrix(weights: Sequence[Tensor]) -> Tensor:
    """The weights, one below the other, in one block of memory that each of them becomes a view of."""
    first, rows = weights[0].detach(), sum(len(weight) for weight in weights)
    ends = [weight.data_ptr() + weight.numel() * weight.element_size() for weight in weights]
    one_block = len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
    if one_block and all(weight.data_ptr() == end for weight, end in zip(weights[1:], ends, strict=False)):
        # One weight, or an earlier call has moved them already.
        return first.as_strided((rows, first.shape[1]), first.stride())
    block = torch.cat([weight.detach() for weight in weights])
    for weight, view in zip(weights, block.split([len(weight) for weight in weights]), strict=True):
        weight.data = view
    return block


def _one_bias(layers: Sequence[nn.Linear]) -> Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    biases = [layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
    return torch.cat([bias.detach() for bias in biases])


def _base(layer: nn.Module) -> Any:
    get_base: Any = getattr(layer, "get_base_layer", None)
    return layer if get_base is None else get_base()


def _adapters(layers: Sequence[nn.Module]) -> Adapters | None:
    from peft.tuners.lora import LoraLayer

    found = [_adapter(layer) if isinstance(layer, LoraLayer) else None for layer in layers]
    shapes = {(branch[0].shape[0], *branch[2:]) for branch in found if branch is not None}
    if not shapes:
        return None
    if len(shapes) > 1:
        raise NotImplementedError("LoRA of several ranks, scales or dropouts on layers that share an input")
    ((_, scale, dropout),) = shapes
    return Adapters(
        widths=tuple(_base(layer).out_features for layer in layers),
        down=tuple(None if branch is None else branch[0] for branch in found),
        up=tuple(None if branch is None else branch[1] for branch in found),
        scale=scale,
        dropout=dropout,
    )


def _adapter(layer: Any) -> tuple[Tensor, Tensor, float, float]:
    names = layer.active_adapters
    if len(names) != 1 or layer.merged or layer.disable_adapters:
        raise NotImplementedError("LoRA that is merged, switched off or several at once")
    (name,) = names
    if name in layer.lora_magnitude_vector or layer.lora_bias.get(name) or layer.lora_variant.get(name):
        raise NotImplementedError("a variant of LoRA (DoRA or one with biases)")
    dropout = layer.lora_dropout[name]
    share = dropout.p if isinstance(dropout, nn.Dropout) else 0.0
    return layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name]), float(share)
