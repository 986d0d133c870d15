"""Scoring in equal-length batches against a separate padded, one-at-a-time implementation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import toy_sentences

from llm_neo.batching import Batch, TokenRows, encode, packed_batch
from llm_neo.errors import NonFiniteError, ResourceError
from llm_neo.evaluate import classifier_forward, score_rows
from llm_neo.models import adapters
from llm_neo.models.load import LoadedModel, Placement, load_classifier
from llm_neo.recipe import Lora

CPU = torch.device("cpu")
TEXTS = [(text,) for text, _ in toy_sentences(40)]


def classifier(folder: Path, dtype: torch.dtype = torch.float32, quantization: str = "none") -> LoadedModel:
    where = Placement(CPU, dtype, quantization)  # type: ignore[arg-type]
    return load_classifier(folder, "tiny", ["a", "b", "c"], where, max_length_tokens=32, seed=1)


def padded_one_at_a_time(loaded: LoadedModel, model: torch.nn.Module) -> torch.Tensor:
    """Each text alone, padded to 32 tokens, with an attention mask; the last real token goes through the head."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    answers = []
    for (text,) in TEXTS:
        inputs = loaded.tokenizer(text, padding="max_length", max_length=32, return_tensors="pt")
        with torch.no_grad():
            hidden = base.model(**inputs).last_hidden_state[0, inputs["attention_mask"].sum() - 1]
            answers.append(base.score(hidden.float()))
    return torch.stack(answers)


def tokens_of(loaded: LoadedModel) -> TokenRows:
    return encode(loaded.tokenizer, [str(i) for i in range(len(TEXTS))], TEXTS, 32)


def test_scores_equal_the_padded_implementation_in_float32(llama: Path) -> None:
    loaded = classifier(llama)
    expected = padded_one_at_a_time(loaded, loaded.model)
    for max_tokens in (None, 24, 1):
        logits = score_rows(classifier_forward(loaded.model), tokens_of(loaded), CPU, max_tokens=max_tokens)
        assert logits.dtype == torch.float32 and (logits - expected).abs().max() < 1e-5


def test_packed_batches_give_the_same_logits(llama: Path) -> None:
    loaded = classifier(llama)
    rows = tokens_of(loaded)
    with torch.no_grad():
        packed = classifier_forward(loaded.model)(packed_batch(rows, np.arange(len(rows))))
    assert (packed - padded_one_at_a_time(loaded, loaded.model)).abs().max() < 1e-5


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_scores_equal_the_padded_implementation_in_bfloat16(llama: Path, quantization: str) -> None:
    pytest.importorskip("bitsandbytes")
    loaded = classifier(llama, torch.bfloat16, quantization)
    logits = score_rows(classifier_forward(loaded.model, "plain"), tokens_of(loaded), CPU)
    expected = padded_one_at_a_time(loaded, loaded.model)
    assert (logits - expected).abs().max() <= 0.05
    top = expected.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 0.05
    assert torch.equal(logits.argmax(1)[clear], expected.argmax(1)[clear]) and clear.any()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_fused_scores_in_bfloat16_are_as_near_to_float32_as_the_padded_ones(llama: Path, quantization: str) -> None:
    """On these random weights two roundings of equal merit are up to 0.06 apart, so each is held to the exact value."""
    pytest.importorskip("bitsandbytes")
    loaded, precise = (classifier(llama, dtype, quantization) for dtype in (torch.bfloat16, torch.float32))
    exact = padded_one_at_a_time(precise, precise.model)
    padded = padded_one_at_a_time(loaded, loaded.model)
    fused = score_rows(classifier_forward(loaded.model), tokens_of(loaded), CPU)
    assert 0 < (fused - exact).abs().mean() <= 1.25 * (padded - exact).abs().mean()
    top = exact.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 0.1
    assert torch.equal(fused.argmax(1)[clear], exact.argmax(1)[clear]) and clear.any()


def test_pooling_is_that_of_transformers(llama: Path) -> None:
    loaded = classifier(llama)
    inputs = loaded.tokenizer([text for (text,) in TEXTS], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = loaded.model(**inputs).logits
    logits = score_rows(classifier_forward(loaded.model), tokens_of(loaded), CPU)
    assert (logits - expected).abs().max() < 1e-5


def test_adapters_take_part(llama: Path) -> None:
    loaded = classifier(llama)
    model = adapters.add_adapters(loaded.model, Lora(rank=4, alpha=8, dropout=0.5), 5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    model.eval()
    logits = score_rows(classifier_forward(model), tokens_of(loaded), CPU)
    assert (logits - padded_one_at_a_time(loaded, model)).abs().max() < 1e-5
    with model.disable_adapter():
        assert (logits - padded_one_at_a_time(loaded, model)).abs().max() > 1e-3


def fake_rows(*texts: list[int]) -> TokenRows:
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    return TokenRows(tuple(f"row {i}" for i in range(len(texts))), np.concatenate(texts).astype(np.int64), offsets)


def first_token(batch: Batch) -> torch.Tensor:
    """A model whose only logit is the first token of the text."""
    return batch.input_ids[:, :1].float()


def test_the_same_text_is_computed_once_and_answers_keep_their_order() -> None:
    seen: list[int] = []

    def forward(batch: Batch) -> torch.Tensor:
        seen.append(len(batch.rows))
        return first_token(batch)

    logits = score_rows(forward, fake_rows([7, 1], [5, 1], [7, 1], [6]), CPU)
    assert logits.flatten().tolist() == [7, 5, 7, 6] and sum(seen) == 3


def test_scoring_halves_its_batches_when_memory_runs_out_and_finishes() -> None:
    sizes: list[int] = []

    def forward(batch: Batch) -> torch.Tensor:
        sizes.append(batch.tokens)
        if batch.tokens > 4:
            raise torch.OutOfMemoryError("no memory")
        return first_token(batch)

    rows = fake_rows(*[[i, 0] for i in range(8)])
    assert score_rows(forward, rows, CPU, max_tokens=64).flatten().tolist() == list(range(8))
    assert sizes == [16, 8, 4, 4, 4, 4]


def test_a_text_that_fits_in_no_memory_is_an_error_with_a_remedy() -> None:
    def forward(batch: Batch) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(ResourceError, match="one text of 2 tokens.*max_length_tokens"):
        score_rows(forward, fake_rows([1, 2], [3, 4]), CPU)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_logit_names_its_row(value: float) -> None:
    def forward(batch: Batch) -> torch.Tensor:
        return torch.where(batch.input_ids[:, :1] == 5, value, 0.0)

    with pytest.raises(NonFiniteError, match="row row 1"):
        score_rows(forward, fake_rows([7], [5], [6]), CPU)
