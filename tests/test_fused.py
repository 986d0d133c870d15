"""The fused decoder against the modules of transformers and peft, whose very weights it reads."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from llm_neo.batching import Batch, TokenRows, equal_length_batches, packed_batch
from llm_neo.evaluate import classifier_forward
from llm_neo.models.dropout import DroppedBranches, dropped, kept_bits
from llm_neo.models.fused import FusedClassifier, unsupported
from llm_neo.models.projection import Adapters, _adapted, _adapted_pointwise

WORDS, CLASSES, LAYERS = 64, 3, 3
SHAPE = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "num_labels": CLASSES,
}
FAMILIES = {
    "Llama": LlamaConfig(**SHAPE),
    "Mistral": MistralConfig(**SHAPE, sliding_window=None),
    "Qwen2": Qwen2Config(**SHAPE),
    "Qwen3": Qwen3Config(**SHAPE, head_dim=16),
}
LORAS: dict[str, dict[str, object]] = {
    "q, k and v": {"target_modules": ["q_proj", "k_proj", "v_proj"]},
    "q and v": {"target_modules": ["q_proj", "v_proj"]},
    "all linear": {"target_modules": "all-linear"},
    "one rank for o": {"target_modules": "all-linear", "rank_pattern": {"o_proj": 2}},
}


def classifier(config: AutoConfig = FAMILIES["Llama"], seed: int = 0) -> PreTrainedModel:
    """A random frozen classifier in evaluation mode; its biases are not 0, nor are its norms' gains 1."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(copy.deepcopy(config))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.requires_grad_(False).eval()


def with_lora(model: PreTrainedModel, seed: int = 1, **options: object) -> PeftModel:
    """The model with adapters that say something: neither half of them is 0."""
    torch.manual_seed(seed)
    values = {"r": 4, "lora_alpha": 6, "lora_dropout": 0.0, "target_modules": ["q_proj", "k_proj", "v_proj"]}
    adapted = get_peft_model(model, LoraConfig(**{**values, **options}, task_type="SEQ_CLS"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    return adapted.eval()


def token_rows(*lengths: int, seed: int = 0) -> TokenRows:
    """Random texts of these lengths."""
    tokens = np.random.default_rng(seed).integers(1, WORDS, sum(lengths))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenRows(tuple(f"row {i}" for i in range(len(lengths))), tokens, offsets)


def batches() -> dict[str, Batch]:
    rows = token_rows(3, 7, 1, 12, 4)
    (equal,) = equal_length_batches(token_rows(5, 5, 5, 5), 1000)
    return {"packed": packed_batch(rows, np.array([4, 0, 1, 2, 3])), "equal lengths": equal}


def answer(forward: Callable[[Batch], torch.Tensor], model: torch.nn.Module, batch: Batch) -> list[torch.Tensor]:
    """Logits and what a random slope on them makes of every trainable tensor."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    logits = forward(batch)
    slope = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    return [logits, *torch.autograd.grad((logits * slope).sum(), learning)]


def largest_difference(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The largest of all, as a share of the largest value of its tensor (of 1 where that is smaller)."""
    pairs = zip(found, wanted, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1.0)).item() for a, b in pairs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [*LORAS, "all weights"])
def test_logits_and_gradients_are_those_of_transformers(family: str, lora: str) -> None:
    model: torch.nn.Module = classifier(FAMILIES[family])
    model = model.requires_grad_(True) if lora == "all weights" else with_lora(model, **LORAS[lora])  # type: ignore[arg-type]
    expected = {kind: answer(classifier_forward(model, "plain"), model, batch) for kind, batch in batches().items()}
    forward = classifier_forward(model)
    assert isinstance(forward, FusedClassifier)
    for kind, batch in batches().items():
        found = answer(forward, model, batch)
        assert all(gradient.abs().max() > 0 for gradient in found[1:])
        assert largest_difference(found, expected[kind]) < 1e-5, kind


def test_adapters_take_part_on_every_targeted_layer() -> None:
    """Each adapter alone changes the logits, so that none of them is left out."""
    model = with_lora(classifier(), **LORAS["all linear"])
    batch, forward = batches()["packed"], classifier_forward(model)
    with torch.no_grad():
        whole = forward(batch)
        ups = [p for name, p in model.named_parameters() if "lora_B" in name]
        assert len(ups) == 7 * LAYERS
        for up in ups:
            kept = up.clone()
            up.zero_()
            assert (forward(batch) - whole).abs().max() > 1e-4
            up.copy_(kept)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("arithmetic", ["weights", "autocast"])
def test_in_bfloat16_it_is_no_further_from_float32_than_transformers(family: str, arithmetic: str) -> None:
    model = classifier(FAMILIES[family])
    rows = token_rows(*np.random.default_rng(1).integers(1, 20, 64).tolist())
    batch = packed_batch(rows, np.arange(64))
    with torch.no_grad():
        precise = classifier_forward(model, "plain")(batch)
        if arithmetic == "weights":
            model.to(torch.bfloat16).score.float()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=arithmetic == "autocast"):
            plain, fused = (classifier_forward(model, engine)(batch) for engine in ("plain", "auto"))
    error_of_plain, error_of_fused = ((logits - precise).abs().mean().item() for logits in (plain, fused))
    assert 0 < error_of_fused <= 2 * error_of_plain


def storages(model: torch.nn.Module) -> dict[int, int]:
    """Bytes of each block of memory that holds weights."""
    blocks = [parameter.untyped_storage() for parameter in model.parameters()]
    return {block.data_ptr(): block.nbytes() for block in blocks}


def blocks_of(*layers: torch.nn.Module) -> set[int]:
    return {layer.weight.untyped_storage().data_ptr() for layer in layers}


@pytest.mark.parametrize("adapted", [False, True])
def test_joint_weights_are_the_models_own_and_nothing_lies_in_memory_twice(adapted: bool) -> None:
    model = classifier(FAMILIES["Qwen2"])
    base = model.model
    wrapped = with_lora(model) if adapted else model
    before, size = {n: t.clone() for n, t in wrapped.state_dict().items()}, sum(storages(wrapped).values())
    forward = FusedClassifier(wrapped)

    assert sum(storages(wrapped).values()) == size
    after = wrapped.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    for layer in base.layers:
        q, k, v = (
            getattr(module, "base_layer", module)
            for module in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        )
        assert len(blocks_of(q, k, v)) == 1
        assert len(blocks_of(layer.mlp.gate_proj, layer.mlp.up_proj)) == 1

    places = [parameter.data_ptr() for parameter in wrapped.parameters()]
    again = FusedClassifier(wrapped)
    assert [parameter.data_ptr() for parameter in wrapped.parameters()] == places
    with torch.no_grad():
        batch = batches()["packed"]
        assert torch.equal(forward(batch), again(batch))
        # A weight that moves in its own module moves in the joint product.
        base.layers[0].self_attn.k_proj.weight.data.mul_(2.0)
        assert (forward(batch) - classifier_forward(wrapped, "plain")(batch)).abs().max() < 1e-5


def test_weights_that_learn_stay_where_they_are() -> None:
    model = classifier().requires_grad_(True)
    places = [parameter.data_ptr() for parameter in model.parameters()]
    FusedClassifier(model)
    assert [parameter.data_ptr() for parameter in model.parameters()] == places


def test_a_model_saved_afterwards_is_the_same_model(tmp_path: Path) -> None:
    model = classifier(FAMILIES["Qwen2"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    FusedClassifier(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == before.keys() and all(torch.equal(loaded[name], before[name]) for name in before)
    files = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert files < 1.1 * sum(tensor.numel() * 4 for tensor in before.values())


def test_merging_an_adapter_afterwards_gives_the_same_logits() -> None:
    model, batch = with_lora(classifier(), **LORAS["all linear"]), batches()["packed"]
    with torch.no_grad():
        expected = classifier_forward(model)(batch)
        merged = model.merge_and_unload()
        assert unsupported(merged) is None
        assert (classifier_forward(merged)(batch) - expected).abs().max() < 1e-5


def merged_adapter() -> PeftModel:
    model = with_lora(classifier())
    model.merge_adapter()
    return model


def two_adapters() -> PeftModel:
    # Of the backbone: a head may have but one.
    model = with_lora(classifier(), modules_to_save=[])
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    for layer in model.get_base_model().model.layers:
        layer.self_attn.q_proj.set_adapter(["default", "other"])
    return model


def other(config: type = LlamaConfig, **changes: object) -> PreTrainedModel:
    return classifier(config(**{**SHAPE, **changes}))


REFUSED: dict[str, tuple[Callable[[], torch.nn.Module], str]] = {
    "another backbone": (
        lambda: classifier(GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=1, n_head=2, pad_token_id=0)),
        "a GPT2Model is not of the Llama family",
    ),
    "sliding window": (lambda: other(MistralConfig, sliding_window=8), "sliding window"),
    "sliding window of Qwen2": (
        lambda: other(Qwen2Config, use_sliding_window=True, sliding_window=8, max_window_layers=1),
        "sliding window",
    ),
    "activation": (lambda: other(hidden_act="gelu"), "gelu is not SiLU"),
    "dropout of the attention": (lambda: other(attention_dropout=0.1), "dropout"),
    "DoRA": (lambda: with_lora(classifier(), use_dora=True), "DoRA"),
    "LoRA with biases": (lambda: with_lora(classifier(), lora_bias=True), "biases"),
    "several ranks": (lambda: with_lora(classifier(), rank_pattern={"q_proj": 2}), "several ranks"),
    "several scales": (lambda: with_lora(classifier(), alpha_pattern={"k_proj": 1}), "scales"),
    "merged": (merged_adapter, "merged"),
    "two adapters": (two_adapters, "several at once"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_does_not_compute_is_named_and_left_to_transformers(case: str) -> None:
    make, reason = REFUSED[case]
    model = make()
    assert reason in (unsupported(model) or "")
    assert not isinstance(classifier_forward(model), FusedClassifier)
    with pytest.raises(NotImplementedError, match=reason):
        FusedClassifier(model)


def test_an_adapter_that_is_switched_off_is_left_to_peft() -> None:
    model = with_lora(classifier())
    with model.disable_adapter():
        assert "switched off" in (unsupported(model) or "")
    assert unsupported(model) is None


@pytest.mark.parametrize(
    "config",
    [
        IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[]),
        LoHaConfig(target_modules=["q_proj", "v_proj"], r=4),
        VeraConfig(target_modules=["q_proj"], r=4),
        AdaLoraConfig(target_modules=["q_proj"], init_r=4, total_step=10),
        LNTuningConfig(target_modules=["input_layernorm"]),
    ],
    ids=lambda config: type(config).__name__,
)
def test_tuners_other_than_lora_are_left_to_peft(config: PeftConfig) -> None:
    torch.manual_seed(0)
    model, batch = get_peft_model(classifier(), config).eval(), batches()["packed"]
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter) * parameter.requires_grad
    assert unsupported(model) is not None
    with torch.no_grad():
        assert torch.equal(classifier_forward(model)(batch), classifier_forward(model, "plain")(batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_family_without_those_is_computed(family: str) -> None:
    assert unsupported(classifier(FAMILIES[family])) is None
    assert unsupported(other(Qwen2Config, use_sliding_window=False, sliding_window=8)) is None


def test_dropout_keeps_exact_shares_and_values() -> None:
    size, keep = 400_001, 0.7
    torch.manual_seed(3)
    mask = dropped((size,), keep, torch.ones(1))
    share = round(keep * 2**16) / 2**16
    assert mask.unique().tolist() == [0.0, pytest.approx(1 / share)]
    # Five standard deviations of a mean of this many draws, also in each of the four values of one draw.
    for part in (mask, *(mask[lane::4] for lane in range(4))):
        spread = ((1 - share) / share / len(part)) ** 0.5
        assert abs(part.mean().item() - 1.0) < 5 * spread
    # Neighbours, which share a draw, know nothing of each other.
    kept = (mask > 0).double()
    assert abs(torch.corrcoef(torch.stack([kept[:-1], kept[1:]]))[0, 1].item()) < 5 / size**0.5


def test_dropout_comes_from_the_seed_in_any_shape_and_dtype() -> None:
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return dropped((3, 5, 7), 0.5, torch.ones(7, dtype=torch.bfloat16))

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    assert drawn(1).shape == (3, 5, 7) and drawn(1).dtype == torch.bfloat16
    assert set(drawn(1).unique().tolist()) == {0.0, 2.0}
    # What is kept is the value itself, and its gradient is dropped with it.
    x = torch.tensor([3.0, -5.0], requires_grad=True)
    kept = dropped((40, 2), 0.5, x)
    kept.sum().backward()
    assert set(kept[:, 0].tolist()) == {0.0, 6.0} and set(kept[:, 1].tolist()) == {0.0, -10.0}
    assert x.grad is not None and x.grad.tolist() == (2.0 * (kept != 0).sum(dim=0)).tolist()


def test_dropout_of_nearly_all_values_is_a_dropout_too() -> None:
    assert torch.isfinite(dropped((64,), 1e-6, torch.ones(1))).all()


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.02, 1.0 - 1e-9])
def test_masks_of_bits_keep_their_share(keep: float) -> None:
    torch.manual_seed(0)
    bits, share = kept_bits((301, 333), keep)
    assert set(bits.unique().tolist()) <= {0, -1}
    assert share == pytest.approx(keep, abs=2**-14)
    spread = 4 * (keep * (1 - keep) / bits.numel()) ** 0.5
    assert (bits == -1).float().mean().item() == pytest.approx(share, abs=spread + 1e-4)


def test_branches_in_16_bits_drop_scale_and_have_the_gradient_of_their_mask() -> None:
    x, out = torch.randn(6, 8).bfloat16().requires_grad_(), torch.randn(6, 5).bfloat16().requires_grad_()
    down, up = torch.randn(2, 3, 8).bfloat16().requires_grad_(), torch.randn(5, 6).bfloat16().requires_grad_()
    inputs, weight = (x, out, down, up), torch.randn(6, 5)
    torch.manual_seed(3)
    found = DroppedBranches.apply(*inputs, 0.7, 2.0)
    torch.manual_seed(3)
    bits, share = kept_bits((2, 6, 8), 0.7)
    precise = [tensor.detach().double().requires_grad_() for tensor in inputs]
    low = ((precise[0] * (bits == -1) / share) @ precise[2].transpose(1, 2)).transpose(0, 1).reshape(6, -1)
    expected = precise[1] + 2.0 * low @ precise[3].t()
    gradients = (
        torch.autograd.grad((found.float() * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), precise),
    )
    for mine, theirs in zip((found, *gradients[0]), (expected, *gradients[1]), strict=True):
        torch.testing.assert_close(mine.double(), theirs, atol=0.02 * theirs.abs().max().item(), rtol=0.02)


def test_dropout_is_on_while_training_and_only_then() -> None:
    model, batch = with_lora(classifier(), lora_dropout=0.5), batches()["packed"]
    forward = classifier_forward(model)
    with torch.no_grad():
        still = forward(batch)
        assert torch.equal(forward(batch), still)
        model.train()
        first, second = forward(batch), forward(batch)
        assert not torch.equal(first, still) and not torch.equal(first, second)
        model.eval()
        assert torch.equal(forward(batch), still)


def branches(dropout: float = 0.0) -> Adapters:
    """Three layers of widths 1, 2 and 1; the second has no branch."""
    return Adapters(
        widths=(1, 2, 1),
        down=(torch.tensor([[1.0, 1.0]]), None, torch.tensor([[1.0, -1.0]])),
        up=(torch.tensor([[2.0]]), None, torch.tensor([[4.0]])),
        scale=0.5,
        dropout=dropout,
    )


@pytest.mark.parametrize("form", [_adapted, _adapted_pointwise])
def test_branches_by_hand(form: Callable[..., torch.Tensor]) -> None:
    x, out = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[10.0, 20.0, 30.0, 40.0], [0.0, 0.0, 0.0, 0.0]])
    # 0.5 * 2 * (1 + 2) = 3 and 0.5 * 4 * (1 - 2) = -2.
    expected = [[13.0, 20.0, 30.0, 38.0], [1.0, 0.0, 0.0, -2.0]]
    assert form(x, out, branches(), True).tolist() == expected
    # Dropout is for training alone.
    assert form(x, out, branches(0.5), False).tolist() == expected


@pytest.mark.parametrize("form", [_adapted, _adapted_pointwise])
def test_each_branch_drops_values_of_its_own_and_the_mean_stays(form: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    rows = 40_000
    x, out = torch.tensor([[1.0, 2.0]]).repeat(rows, 1), torch.zeros(rows, 4)
    found = form(x, out, branches(0.5), True)
    # Values are kept, doubled, or gone: 2 * {0, 1} + 2 * {0, 2} and twice 2 * {0, 1} - 2 * {0, 2}.
    assert set(found[:, 0].tolist()) == {0.0, 2.0, 4.0, 6.0} and set(found[:, 3].tolist()) == {0.0, 4.0, -8.0, -4.0}
    assert found[:, 1:3].abs().max() == 0.0
    assert found.mean(dim=0).tolist() == pytest.approx([3.0, 0.0, 0.0, -2.0], abs=0.12)
    # With one mask for both branches these two would always come together.
    assert (found[:, 0] == 6.0)[found[:, 3] == 0.0].any()
