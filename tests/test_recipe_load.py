"""Recipes by name and by file, `extends`, overrides, and the round trip through YAML."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_neo.errors import InputError, RecipeError
from llm_neo.recipe import (
    Data,
    FineTune,
    HeldOut,
    LabelledSource,
    Lora,
    Loss,
    Prompt,
    Recipe,
    Runtime,
    ScoreLabel,
    Student,
    Teacher,
    TextSource,
    Train,
    dump_recipe,
    load_recipe,
    recipe_names,
    recipe_text,
)

SMALL = """
data:
  train: {source: t.tsv, text: text, label: label}
  validation: {fraction_of_train: 0.5}
teacher: {model: m, fine_tune: {learning_rate: 5e-5}}
student: {model: s, layers: [0, 2], lora: {rank: 1, alpha: 2}}
output: out
"""


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_a_file_gives_a_frozen_typed_tree(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, "r.yaml", SMALL))
    assert recipe.student == Student(model="s", layers=(0, 2), lora=Lora(rank=1, alpha=2))
    assert recipe.teacher.fine_tune == FineTune(learning_rate=5e-5)
    assert recipe.data.validation == HeldOut(fraction_of_train=0.5)
    assert recipe.loss == Loss(hard_label_weight=0.5, temperature=2.0)
    with pytest.raises(ValueError, match="frozen"):
        recipe.output = "elsewhere"  # type: ignore[misc]


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    assert load_recipe(str(tmp_path / "r.yaml")).output == "out"


def test_overrides_win_and_reach_below_null(tmp_path: Path) -> None:
    path = written(tmp_path, "r.yaml", SMALL.replace("lora: {rank: 1, alpha: 2}", "lora: null"))
    recipe = load_recipe(path, ["student.lora.rank=3", "student.lora.alpha=1", "output=a", "output=b"])
    assert recipe.student.lora == Lora(rank=3, alpha=1)
    assert recipe.output == "b"
    assert load_recipe(path, ["teacher.fine_tune=null"]).teacher.fine_tune is None


def test_one_key_swaps_the_kind_of_teacher() -> None:
    prompted = load_recipe("quickstart", ["teacher.prompt={template: '{text} is', label_words: [bad, good]}"])
    assert prompted.teacher.prompt == Prompt(template="{text} is", label_words=("bad", "good"))
    assert prompted.teacher.fine_tune is None
    with pytest.raises(RecipeError, match=r"teacher\.adapter: cannot stand beside teacher\.fine_tune"):
        load_recipe("quickstart", ["teacher.adapter=a", "teacher.fine_tune.epochs=1"])


def test_one_key_swaps_the_training_file() -> None:
    recipe = load_recipe("quickstart", ["data.train.source=mine.tsv", "data.train.label=stars"])
    assert recipe.data.train == LabelledSource(source="mine.tsv", text="text", label="stars", limit=2000)


def test_extends_a_shipped_recipe_and_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    written(tmp_path, "base.yaml", "extends: sst2-smollm2\ntrain: {epochs: 3}\noutput: base\n")
    path = written(tmp_path / "below", "mine.yaml", "extends: ../base.yaml\noutput: mine\n")
    recipe, shipped = load_recipe(path), load_recipe("sst2-smollm2")
    assert (recipe.train.epochs, recipe.output) == (3, "mine")
    assert recipe.data == shipped.data
    assert recipe.train.learning_rate == shipped.train.learning_rate


def test_extends_null_is_nothing(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, "r.yaml", SMALL + "extends: null\n")).output == "out"


def test_a_file_called_like_a_shipped_recipe_is_reached_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "quickstart", SMALL)
    assert load_recipe("./quickstart").output == "out"
    assert load_recipe("quickstart").output == "runs/quickstart"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; begin with `extends: quickstart`"),
        ("- a", '["a"] is not a mapping; write keys such as `data:` at its top'),
        ("output: [", "line 1, column 10: not valid YAML"),
        ("output: a\noutput: b", "line 2, column 1: the key output is given twice"),
        ("extends: 5", "extends: 5 must be one name or file of a recipe, as text"),
        ("extends: r.yaml", "goes in a circle; cut it"),
        ("extends: quikstart", "quikstart: it is neither a file nor one of the shipped recipes"),
        ("extends: quickstart\ntrain: {epoch: 2}", "train.epoch: unknown key; did you mean train.epochs?"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        load_recipe(written(tmp_path, "r.yaml", text))
    assert message in str(refused.value)
    assert "r.yaml" in str(refused.value) or "quikstart" in str(refused.value)


def test_a_file_in_another_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes("output: a\ntask: caf\xe9\n".encode("latin-1"))
    with pytest.raises(RecipeError, match="line 2: byte 0xe9 is not UTF-8; save it as UTF-8"):
        load_recipe(str(tmp_path / "r.yaml"))


def test_what_is_no_recipe_names_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no recipe quikstart: .*\(quickstart, .*; did you mean quickstart\?"):
        load_recipe("quikstart")
    with pytest.raises(InputError, match="name one of them or a YAML file"):
        recipe_text("../secret")
    with pytest.raises(InputError, match="is a folder, not a recipe; name the YAML file in it"):
        load_recipe(str(tmp_path))


def test_an_unreadable_file_is_refused() -> None:
    """The memory of a process exists as a file, but its beginning cannot be read."""
    if not Path("/proc/self/mem").exists():
        pytest.skip("needs /proc")
    with pytest.raises(InputError, match=r"cannot be read: .*; check its permissions"):
        load_recipe("/proc/self/mem")


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
words = st.one_of(names, st.sampled_from(["yes", "No", "null", "5e-5", "1_0", "0x1", "~", "a: b", "#", " x ", "-"]))
positive = st.integers(1, 10**6)
rates = st.floats(min_value=1e-300, max_value=1e300, exclude_min=True)
shares = st.floats(0, 1, exclude_max=True)
loras = st.builds(
    Lora,
    rank=positive,
    alpha=rates,
    dropout=shares,
    targets=st.one_of(st.just("all-linear"), st.lists(words, min_size=1, max_size=3).map(tuple)),
)
columns = st.lists(words, min_size=3, max_size=4, unique=True).map(tuple)


def labelled(names: tuple[str, ...], scored: bool, pair: bool) -> LabelledSource:
    label = ScoreLabel(column=names[2], negative_below=-1e-9, positive_above=3) if scored else names[2]
    return LabelledSource(source=names[0], text=names[:2] if pair else names[0], columns=names, label=label)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    pair = draw(st.booleans())
    train = labelled(draw(columns), draw(st.booleans()), pair)
    held_out = st.builds(HeldOut, fraction_of_train=shares.filter(lambda share: share > 0), limit=positive)
    own = st.builds(labelled, columns, st.booleans(), st.just(pair))
    data = Data(
        train=train,
        validation=draw(st.one_of(held_out, own)),
        unlabelled=draw(st.sampled_from([None, TextSource(source="u.tsv", text=train.text)])),
        classes=draw(st.sampled_from([None, ("no", "yes")])),
    )
    ways: list[dict[str, object]] = [
        {},
        {"adapter": draw(words)},
        {"fine_tune": FineTune(learning_rate=draw(rates), lora=draw(loras))},
        {"prompt": Prompt(template="{first}\n{second}" if pair else " {text}\t", label_words=(" a", "b "))},
    ]
    return Recipe(
        data=data,
        teacher=Teacher(model=draw(words), **draw(st.sampled_from(ways))),  # type: ignore[arg-type]
        student=Student(
            model=draw(words), layers=draw(st.sampled_from([None, 3, (0, 5)])), lora=draw(st.none() | loras)
        ),
        loss=Loss(hard_label_weight=draw(shares), temperature=draw(rates)),
        train=Train(learning_rate=draw(rates), max_gradient_norm=draw(st.none() | rates), seed=draw(positive)),
        runtime=Runtime(memory_limit_gib=draw(st.none() | rates)),
        trackers=draw(st.sampled_from([(), ("tensorboard",)])),
        output=draw(words),
    )


@settings(max_examples=60, deadline=None)
@given(recipe=recipes())
def test_a_dumped_recipe_loads_back_equal(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(path)) == recipe


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_loads_and_says_what_it_is(name: str) -> None:
    text = recipe_text(name)
    for about in ("# What it does ", "# What it needs ", "# How long "):
        assert f"\n{about}" in text
    recipe = load_recipe(name)
    assert recipe.output == f"runs/{name}"
    assert recipe.teacher.fine_tune is not None


def test_the_shipped_recipes_are_these() -> None:
    assert recipe_names() == ("quickstart", "sst2-llama3", "sst2-smollm2")


def test_sst2_llama3_is_the_seed_value_for_value() -> None:
    """Every figure of the document that asked for LLM-Neo, and the teacher stage that it left out."""
    recipe = load_recipe("sst2-llama3")
    source = {"text": "sentence", "label": "label"}
    assert recipe.task == "sequence-classification"
    assert recipe.data == Data(
        train=LabelledSource(source="nyu-mll/glue:sst2/train", **source),
        validation=LabelledSource(source="nyu-mll/glue:sst2/validation", **source),
        unlabelled=None,
        classes=None,
        max_length_tokens=128,
    )
    assert recipe.teacher == Teacher(
        model="meta-llama/Meta-Llama-3-8B",
        quantization="nf4",
        gate="stop",
        fine_tune=FineTune(
            epochs=1,
            batch_size=16,
            micro_batch_size=None,
            learning_rate=2e-4,
            lora=Lora(rank=16, alpha=32, dropout=0.05, targets="all-linear"),
        ),
    )
    assert recipe.student == Student(
        model="NousResearch/Llama-3.2-1B",
        layers=None,
        lora=Lora(rank=4, alpha=8, dropout=0.1, targets=("q_proj", "k_proj", "v_proj")),
    )
    assert recipe.loss == Loss(hard_label_weight=0.5, temperature=2.0)
    assert recipe.train == Train(
        epochs=1,
        batch_size=16,
        micro_batch_size=None,
        learning_rate=5e-5,
        weight_decay=0.01,
        schedule="linear",
        warmup_fraction=0.0,
        max_gradient_norm=1.0,
        seed=0,
        evaluate_every_steps=1000,
        evaluate_rows=None,
        checkpoint_every_steps=1000,
        log_every_steps=10,
    )
    assert recipe.runtime == Runtime(
        device="auto", precision="auto", engine="auto", memory_limit_gib=None, trust_remote_code=False
    )
    assert recipe.trackers == ()


def test_the_sst2_steps_of_the_seed_follow_from_its_recipe() -> None:
    """67,349 rows in batches of 16 are 4,210 steps, of which four are evaluations at thousands."""
    train = load_recipe("sst2-llama3").train
    steps = math.ceil(67_349 / train.batch_size) * train.epochs
    assert steps == 4210
    assert train.evaluate_every_steps is not None
    assert steps // train.evaluate_every_steps == 4
