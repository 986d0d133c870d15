"""A GGUF file becomes a folder like any other: the values, the special tokens, the digits, one bos token."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from assets_builders import tiny_gguf, tiny_vocabulary
from packaging.version import Version
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from llm_neo.assets import gguf as gguf_module
from llm_neo.assets.cache import cache_folder
from llm_neo.assets.gguf import convert_gguf
from llm_neo.errors import InputError
from llm_neo.progress import SilentProgress

NEWER_READER = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="this transformers reads no Llama 3 word rule and no tokenizer without bos; the conversion says so",
)
VOCABULARY = tiny_vocabulary()
# Read before a fixture gives each test a cache of its own.
USERS_CACHE = cache_folder()


class Told(SilentProgress):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def tokens(folder: Path, *texts: str) -> list[str]:
    return [VOCABULARY[index] for index in AutoTokenizer.from_pretrained(folder)(*texts)["input_ids"]]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray], list[str]]:
    """The folder made from the tiny SmolLM2-like file, the file's values and what was said; read only."""
    home = tmp_path_factory.mktemp("gguf")
    values = tiny_gguf(home / "tiny.gguf")
    told = Told()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_NEO_CACHE", str(home / "cache"))
        return convert_gguf(home / "tiny.gguf", told), values, told.lines


def test_the_folder_holds_a_plain_bfloat16_model(
    converted: tuple[Path, dict[str, np.ndarray], list[str]],
) -> None:
    folder, values, said = converted
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    for ours, theirs in {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "blk.0.attn_v": "model.layers.0.self_attn.v_proj",
        "blk.0.ffn_gate": "model.layers.0.mlp.gate_proj",
        "blk.0.ffn_down": "model.layers.0.mlp.down_proj",
    }.items():
        assert torch.equal(stored[f"{theirs}.weight"], torch.from_numpy(values[ours]).bfloat16())
    # Rotary halves are interleaved in the file: row 0, 2, 4, ... become rows 0, 1, 2, ...
    query = torch.from_numpy(values["blk.0.attn_q"]).bfloat16()
    assert torch.equal(stored["model.layers.0.self_attn.q_proj.weight"], torch.cat([query[0::2], query[1::2]]))
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
    assert not {"quantization_config", "_model_name_or_path"} & set(config)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (1, 2, 2)
    assert said == ["Converting tiny.gguf (0 MB) to safetensors, once; about 15 s"]
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_transformers_loads_it_as_any_other(
    converted: tuple[Path, dict[str, np.ndarray], list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = converted[0]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert torch.isfinite(model(torch.tensor([[1, 5, 6]])).logits).all()
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    assert classifier.config.pad_token_id == 2


def test_each_text_begins_with_one_bos_and_digits_stand_alone(
    converted: tuple[Path, dict[str, np.ndarray], list[str]],
) -> None:
    folder = converted[0]
    # The merges would make 2024 one token.
    assert tokens(folder, "2024") == ["<|im_start|>", "2", "0", "2", "4"]
    assert tokens(folder, "  the 20") == ["<|im_start|>", "Ġ", "Ġt", "he", "Ġ", "2", "0"]
    assert tokens(folder, "") == ["<|im_start|>"]
    assert tokens(folder, "a", "b") == ["<|im_start|>", "a", "<|im_start|>", "b"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.unk_token_id == 0
    assert tokenizer.model_max_length == 128
    batch = tokenizer(["a", "the"], padding=True)
    assert batch["input_ids"] == [
        [1, VOCABULARY.index("a"), 2],
        [1, VOCABULARY.index("t"), VOCABULARY.index("he")],
    ]
    assert tokenizer("aaaa", truncation=True, max_length=2)["input_ids"] == [1, VOCABULARY.index("a")]
    assert tokenizer("a", add_special_tokens=False)["input_ids"] == [VOCABULARY.index("a")]


def test_saving_the_tokenizer_again_keeps_it(
    converted: tuple[Path, dict[str, np.ndarray], list[str]], tmp_path: Path
) -> None:
    AutoTokenizer.from_pretrained(converted[0]).save_pretrained(tmp_path)
    assert tokens(tmp_path, "20", "a") == ["<|im_start|>", "2", "0", "<|im_start|>", "a"]


def test_a_second_call_converts_nothing_and_another_file_is_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_gguf(tmp_path / "a.gguf")
    told = Told()
    folder = convert_gguf(tmp_path / "a.gguf", told)
    made = (folder / "model.safetensors").stat()
    shutil.copy(tmp_path / "a.gguf", tmp_path / "copy.gguf")
    assert convert_gguf(tmp_path / "copy.gguf", told) == folder
    assert (folder / "model.safetensors").stat() == made
    assert len(told.lines) == 1
    tiny_gguf(tmp_path / "b.gguf", seed=1)
    assert convert_gguf(tmp_path / "b.gguf") != folder
    monkeypatch.setattr(gguf_module, "CONVERTER_VERSION", -1)
    assert convert_gguf(tmp_path / "a.gguf") != folder
    assert not list(cache_folder().rglob(".staging-*"))


def test_smollm_files_that_name_no_special_tokens_get_smollms(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "a.gguf", ids={})
    folder = convert_gguf(tmp_path / "a.gguf")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokens(folder, "a") == ["<|im_start|>", "a"]
    assert json.loads((folder / "config.json").read_text())["pad_token_id"] == 2


@pytest.mark.parametrize(
    ("pre", "adds_bos", "adds_eos", "expected"),
    [
        # What the file says counts; without a word a byte-level vocabulary has no bos, but Llama 3's has.
        ("gpt-2", False, None, ["2024"]),
        ("gpt-2", True, True, ["<|im_start|>", "2024", "<|im_end|>"]),
        ("gpt-2", None, None, ["2024"]),
        pytest.param("llama-bpe", None, None, ["<|im_start|>", "20", "2", "4"], marks=NEWER_READER),
        ("starcoder", None, None, ["2", "0", "2", "4"]),
    ],
)
def test_other_models_are_split_as_their_file_says(
    tmp_path: Path, pre: str, adds_bos: bool | None, adds_eos: bool | None, expected: list[str]
) -> None:
    tiny_gguf(tmp_path / "a.gguf", pre=pre, adds_bos=adds_bos, adds_eos=adds_eos)
    told = Told()
    assert tokens(convert_gguf(tmp_path / "a.gguf", told), "2024") == expected
    assert len(told.lines) == 1


@NEWER_READER
def test_an_unknown_rule_for_words_is_said(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "a.gguf", pre="martian", ids={"eos": 2}, adds_bos=True)
    told = Told()
    folder = convert_gguf(tmp_path / "a.gguf", told)
    assert told.lines[1:] == [
        "a.gguf splits words by the rule 'martian', which is not known here: token ids may differ from the original"
        " model's"
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Without a bos token none can be added, and a role that the file leaves out stays empty.
    assert tokens(folder, "a") == ["a"]
    assert (tokenizer.bos_token, tokenizer.pad_token) == (None, None)


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tiny_gguf(tmp_path / "a.gguf", seed=3)
    convert_gguf(tmp_path / "a.gguf")
    assert capfd.readouterr() == ("", "")


def test_bad_files_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    with pytest.raises(InputError, match=r"a.gguf cannot be read \(No such file"):
        convert_gguf(path)
    path.write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(InputError, match="is not a GGUF file"):
        convert_gguf(path)
    path.write_bytes(b"GGUF")
    with pytest.raises(InputError, match="is damaged or incomplete"):
        convert_gguf(path)
    tiny_gguf(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="is damaged or incomplete"):
        convert_gguf(path)
    writer = gguf.GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(InputError, match=r"incomplete \(KeyError: 'tokenizer.ggml.tokens'\)"):
        convert_gguf(path)
    tiny_gguf(path, architecture="martian")
    with pytest.raises(InputError, match=r"transformers cannot read the GGUF file .*martian"):
        convert_gguf(path)
    tiny_gguf(path, without="blk.0.attn_v")
    with pytest.raises(InputError, match=r"no tensor for model.layers.0.self_attn.v_proj.weight"):
        convert_gguf(path)
    assert not [entry for entry in cache_folder().rglob("*") if entry.is_file()]


def test_the_real_smollm2_says_paris() -> None:
    found = sorted(USERS_CACHE.glob("models/b179c9523d0e6a0f98a330c7562b6827-v*"))
    if not found:
        pytest.skip(f"no converted SmolLM2-135M in {USERS_CACHE}; `llm-neo distill` puts it there")
    tokenizer = AutoTokenizer.from_pretrained(found[-1])
    model = AutoModelForCausalLM.from_pretrained(found[-1])
    assert tokenizer("In 2024, 3 movies")["input_ids"] == [1, 788, 216, 34, 32, 34, 36, 28, 216, 35, 10026]
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=2, do_sample=False)[0]
    assert tokenizer.decode(answer[prompt["input_ids"].shape[1] :]).strip().startswith("Paris")
