"""Loading: whole, frozen, with a head that is known to be fresh or not; everything else is one clear sentence."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config, tiny_llama, tiny_tokenizer
from transformers import BertConfig, BertForSequenceClassification, LlamaForSequenceClassification

from llm_neo import tasks
from llm_neo.errors import InputError
from llm_neo.models import adapters, quantization
from llm_neo.models.layers import select_layers
from llm_neo.models.load import LoadedModel, Placement, load_classifier, load_language_model
from llm_neo.recipe import Lora

CPU = torch.device("cpu")


def load(folder: Path, classes: tuple[str, ...] = ("a", "b"), kind: str = "none", **more: object) -> LoadedModel:
    where = Placement(CPU, more.pop("dtype", torch.float32), kind)  # type: ignore[arg-type]
    options = {"max_length_tokens": 32, "seed": 1} | more
    return load_classifier(folder, "org/model", classes, where, **options)  # type: ignore[arg-type]


def test_a_base_model_gets_a_fresh_head_from_the_seed_and_says_so(llama: Path) -> None:
    loaded, again, other = load(llama), load(llama), load(llama, seed=2)
    assert loaded.fresh_head and torch.equal(loaded.model.score.weight, again.model.score.weight)
    assert not torch.equal(loaded.model.score.weight, other.model.score.weight)
    assert loaded.model.score.weight.std() == pytest.approx(0.1, rel=0.2)
    assert not any(p.requires_grad for p in loaded.model.parameters()) and not loaded.model.training
    assert loaded.layers == 3 and loaded.parameters == sum(p.numel() for p in loaded.model.parameters())


def test_the_head_is_float32_over_a_bfloat16_base(llama: Path) -> None:
    model = load(llama, dtype=torch.bfloat16).model
    assert model.score.weight.dtype == torch.float32
    assert {p.dtype for p in model.model.parameters()} == {torch.bfloat16}


def test_a_classifier_keeps_its_trained_head(tmp_path: Path) -> None:
    saved = load_file(tiny_llama(tmp_path, classes=["a", "b"]) / "model.safetensors")["score.weight"]
    loaded = load(tmp_path)
    assert not loaded.fresh_head and torch.equal(loaded.model.score.weight, saved)


def test_a_head_for_other_classes_is_fresh(tmp_path: Path) -> None:
    assert load(tiny_llama(tmp_path, classes=["a", "b", "c"])).fresh_head


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_every_linear_layer_but_the_head_is_quantised(llama: Path, kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    model = load(llama, kind=kind).model
    linear = {n: type(m).__name__ for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert linear.pop("score") == "Linear" and len(linear) == 7 * 3
    assert set(linear.values()) == {"Linear4bit" if kind == "nf4" else "Linear8bitLt"}
    for layer in model.modules():
        assert getattr(layer, "support_avx512bf16_for_cpu", False) is False


def test_nf4_is_double_quantised_with_the_given_compute_dtype() -> None:
    pytest.importorskip("bitsandbytes")
    config = quantization.quantization_config("nf4", torch.bfloat16)
    assert config is not None and config.load_in_4bit and config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_use_double_quant and config.bnb_4bit_compute_dtype == torch.bfloat16
    assert config.llm_int8_skip_modules is None


def test_without_bitsandbytes_quantising_is_refused_and_the_rest_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    assert quantization.quantization_config("none", torch.float32) is None
    with pytest.raises(InputError, match="teacher.quantization=none"):
        quantization.quantization_config("nf4", torch.float32)


def test_a_tokenizer_without_padding_pads_with_its_end_of_text(llama: Path) -> None:
    loaded = load(llama)
    assert loaded.tokenizer.pad_token == "</s>" and loaded.model.config.pad_token_id == 2
    assert loaded.tokenizer.model_max_length == 32 and loaded.tokenizer.padding_side == "right"


def broken(llama: Path, folder: Path) -> Path:
    shutil.copytree(llama, folder)
    return folder


def test_files_that_lack_a_tensor_are_refused_by_its_name(llama: Path, tmp_path: Path) -> None:
    folder = broken(llama, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 tensors.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "no-such-architecture"}'),
        ("model.safetensors", b"garbage"),
        ("tokenizer.json", b"{"),
    ],
)
def test_a_damaged_file_is_one_sentence_with_the_models_name(
    llama: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    folder = broken(llama, tmp_path / "m")
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match="org/model cannot be loaded: .+") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_the_model_has_no_embeddings_for_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = broken(llama, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 8}))
    with pytest.raises(InputError, match="tokens but the model only 8 embeddings"):
        load(folder)


def test_a_tokenizer_with_neither_padding_nor_end_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = broken(llama, tmp_path / "m")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": None}))
    with pytest.raises(InputError, match="neither a padding nor an end-of-text token"):
        load(folder)


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    shape = {
        "vocab_size": 64,
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 64,
    }
    BertForSequenceClassification(BertConfig(**shape, pad_token_id=2)).save_pretrained(tmp_path)
    tiny_tokenizer(tmp_path)
    with pytest.raises(InputError, match="choose a decoder"):
        load(tmp_path)


def test_a_classifier_is_no_language_model(tmp_path: Path) -> None:
    tiny_llama(tmp_path, classes=["a", "b"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(InputError, match="lack 1 tensors"):
        load_language_model(tmp_path, "org/model", Placement(CPU, torch.float32), max_length_tokens=32)


def test_class_columns_follow_names_where_the_model_has_some() -> None:
    named = tiny_config(id2label={0: "NEGATIVE", 1: "POSITIVE"})
    assert tasks.class_columns(named, ["positive", "negative"]) == [1, 0]
    assert tasks.class_columns(named, ["0", "1"]) == [0, 1]
    unnamed = tiny_config(id2label={0: "LABEL_0", 1: "LABEL_1"})
    assert tasks.class_columns(unnamed, ["bad", "good"]) == [0, 1]
    with pytest.raises(InputError, match="no class named 'good'"):
        tasks.class_columns(named, ["bad", "good"][::-1])
    with pytest.raises(InputError, match="into 2 classes .* but the data has 3"):
        tasks.class_columns(named, ["a", "b", "c"])


def test_the_first_layers_or_a_list_of_them_are_kept(llama: Path) -> None:
    whole = load(llama).model
    queries = [layer.self_attn.q_proj.weight.clone() for layer in whole.model.layers]
    for layers, kept in ((None, [0, 1, 2]), (2, [0, 1]), ((0, 2), [0, 2])):
        model = load(llama).model
        select_layers(model, layers)
        assert model.config.num_hidden_layers == len(kept) == len(model.model.layers)
        for place, index in enumerate(kept):
            assert torch.equal(model.model.layers[place].self_attn.q_proj.weight, queries[index])
            assert model.model.layers[place].self_attn.layer_idx == place


@pytest.mark.parametrize("layers", [4, (0, 3)])
def test_layers_that_the_model_lacks_are_refused(llama: Path, layers: int | tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"student.layers asks for .* but the model has 3 \(0 to 2\)"):
        select_layers(load(llama).model, layers)


def test_an_unmatched_target_is_refused_with_the_nearest_name(llama: Path) -> None:
    with pytest.raises(InputError, match=r"q_porj matches no linear layer.*did you mean q_proj\?.*down_proj"):
        adapters.add_adapters(load(llama).model, Lora(rank=2, alpha=4, targets=("k_proj", "q_porj")), 0)


def test_only_adapters_and_head_are_trainable_and_in_float32(llama: Path) -> None:
    model = adapters.add_adapters(load(llama, dtype=torch.bfloat16).model, Lora(rank=2, alpha=4), 0)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    assert all("lora_" in name or "score" in name for name in trainable)
    # 3 layers, rank 2: q (128 + 128), k and v (128 + 64) each; the head 2 x 128.
    assert adapters.count_parameters(model).trainable == 3 * 2 * (256 + 2 * 192) + 2 * 128


def test_all_linear_leaves_the_head_to_full_training(llama: Path) -> None:
    model = adapters.add_adapters(load(llama).model, Lora(rank=2, alpha=4, targets="all-linear"), 0)
    adapted = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_the_seeds_share_on_the_true_shape_of_llama_3_2_1b() -> None:
    with torch.device("meta"):
        config = tiny_config(
            layers=16,
            vocab_size=128256,
            hidden_size=2048,
            intermediate_size=8192,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=131072,
            num_labels=2,
            pad_token_id=2,
        )
        base = LlamaForSequenceClassification(config)
        base.requires_grad_(False)
        count = adapters.count_parameters(adapters.add_adapters(base, Lora(rank=4, alpha=8, dropout=0.1), 0))
    assert (count.trainable, count.total) == (593_920, 1_236_408_320)
    assert f"{100 * count.share:.4f}" == "0.0480"


def trained(llama: Path, folder: Path, layers: int | None = None) -> torch.nn.Module:
    """An adapter with no zero in it, saved in `folder`."""
    base = load(llama, ("a", "b", "c")).model
    select_layers(base, layers)
    model = adapters.add_adapters(base, Lora(rank=2, alpha=4), 7)
    for parameter in adapters.trainable_parameters(model):
        torch.nn.init.normal_(parameter, std=0.2)
    adapters.save_adapter(model, folder, "org/model", "abc123")
    return model.eval()


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[1, 3, 16]])).logits


def test_a_saved_adapter_comes_back_with_its_head(llama: Path, tmp_path: Path) -> None:
    model = trained(llama, tmp_path)
    loaded = adapters.load_adapter(load(llama, ("a", "b", "c"), seed=99).model, tmp_path)
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert not any(p.requires_grad for p in loaded.parameters())
    config = adapters.read_adapter_config(tmp_path)
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/model", "abc123")
    assert {file.name for file in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_the_head_stays_float32_over_a_bfloat16_base(llama: Path, tmp_path: Path) -> None:
    trained(llama, tmp_path)
    loaded = adapters.load_adapter(load(llama, ("a", "b", "c"), dtype=torch.bfloat16).model, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")["base_model.model.score.weight"]
    head = loaded.get_base_model().score.modules_to_save["default"].weight
    assert head.dtype == torch.float32 and torch.equal(head, saved)


def test_an_adapter_of_a_cut_base_does_not_slip_onto_the_full_one(llama: Path, tmp_path: Path) -> None:
    trained(llama, tmp_path, layers=2)
    with pytest.raises(InputError, match="made for another base"):
        adapters.load_adapter(load(llama, ("a", "b", "c")).model, tmp_path)


def test_an_adapter_without_a_head_is_refused(llama: Path, tmp_path: Path) -> None:
    trained(llama, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if "score" not in n}, file, {"format": "pt"})
    with pytest.raises(InputError, match="has no 'score' head"):
        adapters.load_adapter(load(llama, ("a", "b", "c")).model, tmp_path)


def test_an_adapter_for_other_classes_is_refused(llama: Path, tmp_path: Path) -> None:
    trained(llama, tmp_path)
    with pytest.raises(InputError, match="does not fit this model"):
        adapters.load_adapter(load(llama, ("a", "b")).model, tmp_path)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_without_an_adapter_is_refused(llama: Path, tmp_path: Path, missing: str) -> None:
    trained(llama, tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(InputError, match=f"holds no {missing}"):
        adapters.load_adapter(load(llama, ("a", "b", "c")).model, tmp_path)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_is_refused(llama: Path, tmp_path: Path, name: str) -> None:
    trained(llama, tmp_path)
    (tmp_path / name).write_bytes(b"{")
    with pytest.raises(InputError, match="no valid JSON|is damaged"):
        adapters.load_adapter(load(llama, ("a", "b", "c")).model, tmp_path)
