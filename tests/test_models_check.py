"""What can be told of a model before a weight is read; the refusals themselves are in `test_bad_inputs`."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_llama, tiny_tokenizer

from llm_neo.errors import InputError
from llm_neo.models.check import check_model
from llm_neo.recipe import Lora


def test_a_whole_model_passes_and_no_weight_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llama(tmp_path, layers=3)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    lora = Lora(rank=4, alpha=8, targets=("q_proj", "v_proj"))
    check_model(tmp_path, "tiny", max_length_tokens=8, layers=2, lora=("student.lora", lora))
    check_model(tmp_path, "tiny", max_length_tokens=8, prompted=True)
    assert torch.empty(1).device.type == "cpu"


def test_a_decoder_without_a_classifier_can_still_be_prompted(tmp_path: Path) -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    GraniteForCausalLM(GraniteConfig(vocab_size=64, **shape)).save_pretrained(tmp_path)
    tiny_tokenizer(tmp_path)
    check_model(tmp_path, "granite", max_length_tokens=8, prompted=True)
    with pytest.raises(InputError, match="the model granite cannot be loaded: .*GraniteConfig.*choose another model"):
        check_model(tmp_path, "granite", max_length_tokens=8)
