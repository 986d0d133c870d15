"""What the loss and the tokens must hold for any rows: temperatures, empty batches, padding that is the end of text."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scene import CLASSES, DEVICE, ROWS, labels, student, teacher_logits
from tiny import tiny_llama
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from llm_neo.batching import encode, packed_batch
from llm_neo.errors import InputError
from llm_neo.evaluate import classifier_forward, score_rows
from llm_neo.losses import distillation_loss, soft_term
from llm_neo.models.load import Placement, load_classifier

TEMPERATURES = [0.05, 1.0, 2.0, 50.0]
LOGITS = st.lists(st.floats(-200, 200, width=32), min_size=CLASSES, max_size=CLASSES)


def model_logits(folder: Path, dtype: torch.dtype) -> torch.Tensor:
    """What a real model of this dtype answers."""
    learner = student(folder, dtype)
    return score_rows(classifier_forward(learner.model), learner.rows, DEVICE)


def by_hand(student_NC: torch.Tensor, teacher_NC: torch.Tensor, temperature: float) -> torch.Tensor:
    """The definition in float64."""
    p, q = ((z.double() / temperature).softmax(-1) for z in (teacher_NC, student_NC))
    return temperature**2 * (p * (p.log() - q.log())).sum(-1)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_temperature_gives_the_definition_whatever_the_model_is_in(
    llama: Path, temperature: float, dtype: torch.dtype
) -> None:
    own, teacher = model_logits(llama, dtype).to(dtype), teacher_logits().to(dtype)
    found = soft_term(own, teacher, temperature)
    assert found.dtype == torch.float32 and torch.isfinite(found).all()
    # At T = 50 a soft term is the small difference of large float32 numbers, times 2,500.
    torch.testing.assert_close(found.double(), by_hand(own, teacher, temperature), rtol=1e-3, atol=2500 * 1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_logits_give_exactly_0_and_no_gradient(llama: Path, temperature: float, dtype: torch.dtype) -> None:
    own = model_logits(llama, dtype).to(dtype).requires_grad_()
    found = soft_term(own, own.detach().clone(), temperature)
    found.sum().backward()
    assert found.tolist() == [0.0] * ROWS
    assert own.grad is not None and own.grad.abs().max() <= temperature * 1e-6


@given(LOGITS, LOGITS, st.sampled_from(TEMPERATURES))
@settings(max_examples=200, deadline=None)
def test_the_soft_term_is_never_negative_and_0_for_equal_logits(
    own: list[float], teacher: list[float], temperature: float
) -> None:
    z, t = torch.tensor([own]), torch.tensor([teacher])
    assert soft_term(z, t, temperature).item() >= -(temperature**2) * 1e-6
    assert soft_term(z, z, temperature).item() == 0.0


def test_t_squared_keeps_the_gradient(llama: Path) -> None:
    own, teacher = model_logits(llama, torch.float32).double(), teacher_logits().double()
    centred = (own - own.mean(-1, keepdim=True) - teacher + teacher.mean(-1, keepdim=True)) / CLASSES
    for temperature, within in ((100.0, 0.05), (10_000.0, 5e-4)):
        z = own.clone().requires_grad_()
        soft_term(z, teacher, temperature).sum().backward()
        torch.testing.assert_close(z.grad, centred, rtol=within, atol=within)


@pytest.mark.parametrize("w", [0.0, 0.4, 1.0])
def test_no_rows_are_no_loss_and_no_gradient_but_never_nan(w: float) -> None:
    z = torch.zeros(0, CLASSES, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.long)
    found = distillation_loss(z, torch.zeros(0, CLASSES), nothing, nothing == 1, hard_label_weight=w, temperature=2.0)
    found.total_B.sum().backward()
    assert found.total_B.sum().item() == 0.0 and z.grad is not None and z.grad.shape == (0, CLASSES)


def test_a_row_without_a_label_reads_no_label(llama: Path) -> None:
    own, teacher = model_logits(llama, torch.float32), teacher_logits()
    classes, labelled = labels()
    terms = {"hard_label_weight": 0.4, "temperature": 2.0}
    found = distillation_loss(own, teacher, classes, labelled, **terms)
    other = distillation_loss(own, teacher, torch.where(labelled, classes, (classes + 1) % 3), labelled, **terms)
    assert torch.equal(found.total_B, other.total_B)
    assert (found.hard_B[~labelled] == 0).all() and (found.hard_B[labelled] > 0).all()


def test_a_text_without_a_token_is_refused_and_no_text_is_no_row(llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    assert len(encode(tokenizer, [], [], 8)) == 0
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(InputError, match=r"row train:1: the text .* gives no token; remove the row"):
        encode(tokenizer, ["train:0", "train:1"], [("good",), ("",)], 8)


@pytest.mark.parametrize("pad", ["</s>", "weak"])
@pytest.mark.parametrize("ends", [True, False], ids=["texts end with </s>", "texts end bare"])
@pytest.mark.parametrize("engine", ["plain", "auto"])
def test_padding_that_is_the_end_of_text_changes_no_answer(tmp_path: Path, pad: str, ends: bool, engine: str) -> None:
    tiny_llama(tmp_path, classes=["a", "b", "c"])
    file = tmp_path / "tokenizer.json"
    document = json.loads(file.read_text())
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    words = document["model"]["vocab"]
    document["post_processor"]["single"] += [end] if ends else []
    document["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [words["</s>"]], "tokens": ["</s>"]}
    file.write_text(json.dumps(document))
    for name, change in (("tokenizer_config.json", {"pad_token": pad}), ("config.json", {"pad_token_id": words[pad]})):
        (tmp_path / name).write_text(json.dumps(json.loads((tmp_path / name).read_text()) | change))

    texts = ["good film", "the plot is awful and dull", "story"]
    where = Placement(DEVICE, torch.float32)
    loaded = load_classifier(tmp_path, "tiny", ["a", "b", "c"], where, max_length_tokens=32, seed=1)
    assert loaded.tokenizer.pad_token == pad
    rows = encode(loaded.tokenizer, ["x", "y", "z"], [(text,) for text in texts], 32)
    packed = classifier_forward(loaded.model, engine)(packed_batch(rows, torch.arange(3).numpy()).to(DEVICE))  # type: ignore[arg-type]

    # As anyone would ask it: one padded batch, pooled by transformers.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).to(DEVICE).eval()
    with torch.no_grad():
        wanted = model(**tokenizer(texts, padding=True, return_tensors="pt").to(DEVICE)).logits
    assert (packed - wanted).abs().max() < 1e-5
    assert not math.isclose(packed[0, 0].item(), packed[1, 0].item(), rel_tol=1e-3)
