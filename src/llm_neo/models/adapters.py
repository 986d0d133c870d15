"""The few weights that learn: LoRA adapters and the head, or every weight; counted, saved and restored."""

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from llm_neo import tasks
from llm_neo.errors import InputError
from llm_neo.models.adapter_folder import CONFIG_FILE, WEIGHTS_FILE, read_adapter_config
from llm_neo.models.load import quiet
from llm_neo.recipe.tree import Lora

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ParameterCount:
    """Weights, each counted once."""

    trainable: int
    total: int

    @property
    def share(self) -> float:
        """Trainable weights of all, 0 to 1."""
        return self.trainable / self.total


def add_adapters(model: "PreTrainedModel", lora: Lora, seed: int) -> "PeftModel":
    """Inject trainable low-rank adapters and open the head; both in float32, the base stays frozen.

    Args:
        model: a classifier of transformers, quantised or not.
        lora: rank, alpha, dropout and target modules.
        seed: of the adapters' random halves.

    Raises:
        InputError: a target that names no linear layer of the model.
    """
    from peft import LoraConfig, get_peft_model

    check_targets(model, lora.targets)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft divides it by the rank; any number does
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        modules_to_save=[tasks.HEAD],
        bias="none",
        task_type="SEQ_CLS",
    )
    with quiet():
        adapted = get_peft_model(model, config)
    for parameter in trainable_parameters(adapted):
        parameter.data = parameter.data.float()
    return cast("PeftModel", adapted)


def open_all_weights(model: "PreTrainedModel") -> "PreTrainedModel":
    """Make every weight trainable, for training without adapters."""
    model.requires_grad_(True)
    return model


def check_targets(model: "PreTrainedModel", targets: str | Sequence[str], key: str = "lora") -> None:
    """Refuse a target that names no linear layer; peft itself only minds where none of them does.

    Args:
        model: a classifier of transformers, its weights loaded or not.
        targets: module names, or "all-linear".
        key: of the recipe, that the targets are from.

    Raises:
        InputError: a target that names no linear layer of the model.
    """
    if isinstance(targets, str):
        return
    backbone = getattr(model, model.base_model_prefix)
    names = [name for name, module in backbone.named_modules() if isinstance(module, torch.nn.Linear)]
    unmatched = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in names)]
    if unmatched:
        known = sorted({name.rpartition(".")[2] for name in names})
        near = difflib.get_close_matches(unmatched[0], known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"{key}.targets: {', '.join(unmatched)} matches no linear layer of the model; {hint}"
            f"it has {', '.join(known)}"
        )


def trainable_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that a gradient reaches, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def trainable_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The same by name, detached but not copied: what a checkpoint holds of the model."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def count_parameters(model: torch.nn.Module) -> ParameterCount:
    """Trainable and all weights; peft's frozen duplicate of the head is none of the model's and not counted."""
    kept = dict(_own_parameters(model))
    return ParameterCount(
        trainable=sum(p.numel() for p in kept.values() if p.requires_grad),
        total=sum(p.numel() for p in kept.values()),
    )


def _own_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    from peft.utils import ModulesToSaveWrapper

    duplicates = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, ModulesToSaveWrapper)
        for parameter in module.original_module.parameters()
    }
    return ((name, p) for name, p in model.named_parameters() if id(p) not in duplicates)


def load_adapter(model: "PreTrainedModel", folder: Path) -> "PeftModel":
    """A saved adapter on its base, frozen, its head restored; every tensor of the file must have found its place.

    peft itself only warns where an adapter was made for another base (one with other layers, say).

    Args:
        model: the classifier that the adapter was trained on.
        folder: what `save_adapter` or peft wrote.

    Raises:
        InputError: no adapter, one without a head, or one of another base.
    """
    from peft import PeftModel
    from safetensors import SafetensorError, safe_open

    read_adapter_config(folder)
    try:
        with safe_open(folder / WEIGHTS_FILE, "pt") as file:
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _refuse_headless(saved, folder)
        with quiet():
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    except SafetensorError as error:
        raise InputError(f"{folder / WEIGHTS_FILE} is damaged ({error}); save or copy the adapter again") from error
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the adapter in {folder} does not fit this model: {first}; give one that was trained on it"
        ) from error
    _refuse_misfit(adapted, saved, folder)
    for parameter in adapted.parameters():
        parameter.requires_grad_(False)
    _head_parameters_to_float32(adapted, saved)
    return adapted.eval()


def _refuse_headless(saved: dict[str, torch.Tensor], folder: Path) -> None:
    if not any(name.endswith(f"{tasks.HEAD}.weight") for name in saved):
        raise InputError(
            f"the adapter in {folder} has no '{tasks.HEAD}' head, so the head would be random; "
            f"save it with modules_to_save=['{tasks.HEAD}'] (task_type SEQ_CLS does)"
        )


def _refuse_misfit(adapted: "PeftModel", saved: dict[str, torch.Tensor], folder: Path) -> None:
    from peft import get_peft_model_state_dict

    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    odd = sorted(set(expected) ^ set(saved))
    if odd:
        raise InputError(
            f"the adapter in {folder} was made for another base: {len(odd)} of its tensors or the model's have no "
            f"counterpart, for instance {odd[0]}; load it on the model (and the layers) that it was trained on"
        )


def _head_parameters_to_float32(adapted: "PeftModel", saved: dict[str, torch.Tensor]) -> None:
    """Give the head its float32 values again: peft casts them to the dtype of the base while loading."""
    head = getattr(adapted.get_base_model(), tasks.HEAD)
    module = head.modules_to_save[adapted.active_adapter].float()
    for name, parameter in module.named_parameters():
        (tensor,) = [t for key, t in saved.items() if key.endswith(f"{tasks.HEAD}.{name}")]
        parameter.data.copy_(tensor)


def save_adapter(adapted: "PeftModel", folder: Path, base_name: str, revision: str | None = None) -> None:
    """Write adapter and head as safetensors in peft's own form.

    Args:
        adapted: base with adapters.
        folder: is made.
        base_name: what `adapter_config.json` calls the base: a hub id, a folder, or a path relative to `folder`.
        revision: the base's commit on the hub.
    """
    config = adapted.peft_config[adapted.active_adapter]
    # With a name peft would look the base up, on the network too, to see whether its vocabulary grew.
    config.base_model_name_or_path = None
    with quiet():
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
    config.base_model_name_or_path = base_name
    written = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    written |= {"base_model_name_or_path": base_name, "revision": revision}
    # peft writes them as sets, in any order, the head twice.
    for names in ("target_modules", "modules_to_save"):
        if isinstance(written[names], list):
            written[names] = sorted(set(written[names]))
    (folder / CONFIG_FILE).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").unlink(missing_ok=True)
