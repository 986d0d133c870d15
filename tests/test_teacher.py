"""What a teacher answers, whichever way it was made, against the same thing spelled out."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_llama

from llm_neo.batching import equal_length_batches
from llm_neo.errors import InputError
from llm_neo.models.load import Placement
from llm_neo.progress import SilentProgress
from llm_neo.prompted import CONTENT_FREE, PromptTeacher, fill, load_prompt_teacher
from llm_neo.recipe import Prompt
from llm_neo.teacher import TeacherBase, fingerprint, load_classifier_teacher

CPU = torch.device("cpu")
TEXTS = [("good film",), ("the plot is awful and dull",), ("story",)]
IDS = ["a", "b", "c"]


def base_of(folder: Path, classes: tuple[str, ...] = ("negative", "positive"), limit: int = 32) -> TeacherBase:
    return TeacherBase(folder, "org/teacher", "f" * 64, Placement(CPU, torch.float32), classes, limit, seed=1)


def prompt_teacher(
    folder: Path, words: tuple[str, ...], template: str = "Review : {text} it is", **more: object
) -> PromptTeacher:
    prompt = Prompt(template=template, label_words=words, **{"calibrate": False} | more)  # type: ignore[arg-type]
    return load_prompt_teacher(base_of(folder), prompt)


def log_probability(teacher: PromptTeacher, prompt: str, word: str) -> float:
    """log p(word | prompt), token by token through transformers' own language model."""
    tokenizer, model = teacher.loaded.tokenizer, teacher.loaded.model
    ids = tokenizer(prompt)["input_ids"]
    total = 0.0
    for token in tokenizer(word, add_special_tokens=False)["input_ids"]:
        with torch.no_grad():
            total += float(model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token])
        ids = [*ids, token]
    return total


@pytest.mark.parametrize("words", [("bad", "good"), ("very bad", "very good film"), ("bad", "very good")])
def test_a_prompted_teacher_answers_with_the_log_probability_of_its_words(llama: Path, words: tuple[str, str]) -> None:
    teacher = prompt_teacher(llama, words)
    logits = teacher.score(IDS, TEXTS, SilentProgress())
    for row, (text,) in enumerate(TEXTS):
        for column, word in enumerate(words):
            expected = log_probability(teacher, f"Review : {text} it is", word)
            assert logits[row, column].item() == pytest.approx(expected, abs=1e-4)
    assert not teacher.fresh_head


def test_calibration_takes_away_what_the_words_are_worth_without_content(llama: Path) -> None:
    words = ("bad", "good")
    teacher = prompt_teacher(llama, words, calibrate=True)
    plain = prompt_teacher(llama, words).score(IDS, TEXTS, SilentProgress())
    empty = torch.tensor(
        [[log_probability(teacher, f"Review : {c} it is", word) for word in words] for c in CONTENT_FREE]
    )
    expected = plain - empty.softmax(dim=1).mean(dim=0).log()
    assert (teacher.score(IDS, TEXTS, SilentProgress()) - expected).abs().max() < 1e-4


def test_a_prompt_about_a_pair_holds_both_texts(llama: Path) -> None:
    teacher = prompt_teacher(llama, ("bad", "good"), template="{second} and {first} it is", calibrate=True)
    pairs = [("good film", "the plot"), ("awful", "story")]
    logits = teacher.score(["a", "b"], pairs, SilentProgress())
    difference = log_probability(teacher, "the plot and good film it is", "good") - log_probability(
        teacher, "story and awful it is", "good"
    )
    assert (logits[0, 1] - logits[1, 1]).item() == pytest.approx(difference, abs=1e-4)


def test_a_long_text_is_cut_but_the_end_of_the_prompt_stays(llama: Path) -> None:
    prompt = Prompt(template="Review : {text} it is", label_words=("bad", "good"), calibrate=False)
    teacher = load_prompt_teacher(base_of(llama, limit=2), prompt)
    logits = teacher.score(["a"], [("good film and very long story",)], SilentProgress())
    assert logits[0, 0].item() == pytest.approx(log_probability(teacher, "Review : good film it is", "bad"), abs=1e-4)


def test_braces_in_a_text_mean_nothing() -> None:
    assert fill("a {text} b", ["{text} {first}"]) == "a {text} {first} b"
    assert fill("{second}-{first}", ["{second}", "x"]) == "x-{second}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bad", "good", "fine"), "has 3 words but the data has 2"),
        (("unknown", "unheard"), "the same tokens as another"),
        ((" ", "good"), "no token"),
    ],
)
def test_words_that_cannot_tell_the_classes_apart_are_refused(
    llama: Path, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prompt_teacher(llama, words)


def test_a_classifier_answers_in_the_order_of_the_datas_classes(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, classes=["POSITIVE", "NEGATIVE"])
    logits = load_classifier_teacher(base_of(folder), None).score(IDS, TEXTS, SilentProgress())
    swapped = load_classifier_teacher(base_of(folder, ("positive", "negative")), None)
    assert not swapped.fresh_head
    assert torch.equal(logits, swapped.score(IDS, TEXTS, SilentProgress())[:, [1, 0]])


def test_a_classifier_of_other_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="classifies into 2 classes"):
        load_classifier_teacher(base_of(tiny_llama(tmp_path, classes=["x", "y"]), ("a", "b", "c")), None)


def test_a_headless_model_is_known_to_have_a_fresh_head(llama: Path) -> None:
    assert load_classifier_teacher(base_of(llama), None).fresh_head


def test_a_fingerprint_changes_with_every_part_and_not_with_their_order() -> None:
    assert fingerprint(a=1, b=[2]) == fingerprint(b=[2], a=1)
    assert len({fingerprint(a=1), fingerprint(a=2), fingerprint(b=1), fingerprint(a="1")}) == 4


def test_a_word_that_content_free_prompts_rule_out_gives_finite_targets(llama: Path) -> None:
    teacher = prompt_teacher(llama, ("good", "bad"), calibrate=True)
    empty = [(content,) for content in CONTENT_FREE]
    batches = equal_length_batches(teacher._encode_prompts(["x"] * 3, empty), 1)
    with torch.no_grad():
        # "bad" becomes e^-200 as likely as "good" after each of them: too little for a float32 probability.
        hidden = torch.stack([teacher._hidden(batch)[0, -1] for batch in batches])
        head = teacher.loaded.model.get_output_embeddings().weight
        head[teacher.words[0][0]] = torch.linalg.pinv(hidden) @ torch.full((len(hidden),), 100.0)
        head[teacher.words[1][0]] = -head[teacher.words[0][0]]
    apart = teacher._log_probabilities(["x"] * 3, empty, SilentProgress()).diff().flatten().tolist()
    assert apart == pytest.approx([-200.0] * 3, abs=0.1)
    assert torch.isfinite(teacher.score(IDS, TEXTS, SilentProgress())).all()
