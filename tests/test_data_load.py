"""From the data section of a recipe to rows: splits, limits, ids, fingerprints, notes and errors."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llm_neo import assets
from llm_neo.data import Dataset, Doubts, Row, Split, load_data, read_rows, read_texts
from llm_neo.data.split import hold_out, sample, text_key
from llm_neo.errors import InputError
from llm_neo.progress import SilentProgress
from llm_neo.recipe.tree import Data, LabelledSource, ScoreLabel, TextSource

SCORE = {"column": "score", "negative_below": -0.5, "positive_above": 0.5}
SCORED = {"text": "text", "label": SCORE}


class Told(SilentProgress):
    """A progress that remembers what was said."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def say(self, message: str) -> None:
        """Remember the message."""
        self.messages.append(message)


def tsv(path: Path, *rows: tuple[object, ...]) -> str:
    """A file with these rows; the first one is the header."""
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows_of(count: int, classes: int = 2) -> list[tuple[object, ...]]:
    """A header and `count` distinct texts with labels 0, 1, ... in turn."""
    return [("text", "label"), *[(f"text number {number}", number % classes) for number in range(count)]]


def data_of(path: str, validation: Any = None, **more: Any) -> Data:
    """A recipe's data section with the columns text and label."""
    source = {"source": path, "text": "text", "label": "label", **more.pop("train", {})}
    if isinstance(validation, str):
        validation = {"source": validation, "text": "text", "label": "label"}
    return Data.model_validate({"train": source, "validation": validation or {"fraction_of_train": 0.5}, **more})


def test_two_sources_become_two_splits(tmp_path: Path) -> None:
    train = tsv(tmp_path / "train.tsv", ("text", "label"), (" Good film ", "1"), ("bad", "0"), ("so so", ""))
    validation = tsv(tmp_path / "dev.tsv", ("label", "text"), ("0", "dull"), ("1", "good  FILM"))
    found = load_data(data_of(train, validation))
    assert found == Dataset(
        Split(
            "train",
            (
                Row("train:2", ("Good film",), 1),
                Row("train:3", ("bad",), 0),
                Row("train:4", ("so so",), None),
            ),
            train,
        ),
        Split(
            "validation",
            (Row("validation:2", ("dull",), 0), Row("validation:3", ("good  FILM",), 1)),
            validation,
        ),
        ("0", "1"),
        (
            "validation: 1 of 2 texts in train too, so the figures may flatter",
            "train: 3 rows (0 1, 1 1, without a label 1)",
            "validation: 2 rows (0 1, 1 1)",
        ),
        Doubts(shared_texts=1),
    )


def test_a_pair_of_texts(tmp_path: Path) -> None:
    train = tsv(tmp_path / "t.tsv", ("a", "b", "label"), ("p", "q", "no"), ("p", "r", "yes"))
    source = {"source": train, "text": ("a", "b"), "label": "label"}
    found = load_data(Data.model_validate({"train": source, "validation": source}))
    assert [row.text for row in found.train.rows] == [("p", "q"), ("p", "r")]
    assert found.classes == ("no", "yes")


def test_fingerprints_cover_ids_and_texts_or_ids_and_labels() -> None:
    def split(text: tuple[str, ...] = ("ab",), label: int | None = 0, row_id: str = "train:1") -> Split:
        return Split("train", (Row(row_id, text, label),), "a.tsv")

    assert split().fingerprint == hashlib.sha256(b"7:train:11:12:ab").hexdigest()
    assert split().label_fingerprint == hashlib.sha256(b"7:train:11:0").hexdigest()
    others = [split(("ac",)), split(("a", "b")), split(("ab", "")), split(row_id="train:2")]
    assert len({one.fingerprint for one in [split(), *others]}) == 5
    assert split(label=1).fingerprint == split().fingerprint
    assert len({split(label=label).label_fingerprint for label in (0, 1, None)}) == 3
    assert split(("ac",)).label_fingerprint == split().label_fingerprint


def test_held_out_texts_are_in_no_other_split_whatever_the_order(tmp_path: Path) -> None:
    header, *rows = rows_of(400)
    twins = [(str(text).upper().replace(" ", "  "), label) for text, label in rows[:200]]
    one = load_data(data_of(tsv(tmp_path / "a.tsv", header, *rows, *twins), {"fraction_of_train": 0.25}))
    keys = {text_key(row.text) for row in one.validation.rows}
    assert not keys & {text_key(row.text) for row in one.train.rows}
    assert len(one.train.rows) + len(one.validation.rows) == 600
    assert 70 <= len(keys) <= 130  # 100 expected, 4 standard deviations are 35
    other = load_data(data_of(tsv(tmp_path / "b.tsv", header, *rows[::-3]), {"fraction_of_train": 0.25}))
    assert {text_key(row.text) for row in other.validation.rows} <= keys
    assert {row.id.partition(":")[0] for row in one.validation.rows} == {"validation"}
    assert one.validation.rows[0].id == f"validation:{2 + int(one.validation.rows[0].text[0].split()[-1])}"


def test_limits_sample_after_the_split(tmp_path: Path) -> None:
    header, *rows = rows_of(300)
    path = tsv(tmp_path / "sorted.tsv", header, *sorted(rows, key=lambda row: str(row[1])))
    whole = load_data(data_of(path, {"fraction_of_train": 0.3}))
    part = load_data(data_of(path, {"fraction_of_train": 0.3, "limit": 40}, train={"limit": 100}))
    for name, limit in (("train", 100), ("validation", 40)):
        all_rows, some = getattr(whole, name).rows, getattr(part, name).rows
        assert len(some) == limit
        assert list(some) == [row for row in all_rows if row in some]  # a subset, in the order of the file
        counts = Counter(row.label for row in some)
        assert min(counts[0], counts[1]) >= limit * 0.3
    more = load_data(data_of(path, {"fraction_of_train": 0.3}, train={"limit": 120}))
    assert set(part.train.rows) < set(more.train.rows)


def test_a_sample_is_not_the_hold_out_again() -> None:
    rows = [Row(f"train:{number}", (f"text {number}",), 0) for number in range(1000)]
    _, held = hold_out(rows, 0.5)
    drawn = sample(rows, 500)
    assert 200 < len(set(held) & set(drawn)) < 300  # 250 expected of two independent draws
    assert sample(rows, None) == sample(rows, 1000) == rows


def test_scores_are_split_after_the_thresholds(tmp_path: Path) -> None:
    rows = rows_of(100)[1:]
    scored = [(text, [-1, 1, 0][number % 3]) for number, (text, _) in enumerate(rows)]
    found = load_data(data_of(tsv(tmp_path / "a.tsv", ("text", "score"), *scored), train={"label": SCORE}))
    assert found.classes == ("negative", "positive")
    assert len(found.train.rows) + len(found.validation.rows) == 67
    assert "train: 33 rows dropped, score between -0.5 and 0.5" in found.notes
    share = len(found.validation.rows)
    assert f"validation: {share} rows ({100 * share / 67:.1f} %) of the training source held out" in found.notes
    all_kept = tsv(tmp_path / "#all.tsv", ("text", "score"), ("a", 1), ("b", -1))
    notes = load_data(data_of(all_kept, {**SCORED, "source": all_kept}, train={"label": SCORE})).notes
    assert not any("dropped" in note for note in notes)
    with pytest.raises(InputError, match="every score in column 'score' lies between the thresholds"):
        load_data(data_of(tsv(tmp_path / "b.tsv", ("text", "score"), ("a", 0)), train={"label": SCORE}))


def test_unlabelled_rows_follow_the_training_rows(tmp_path: Path) -> None:
    train, extra = (
        tsv(tmp_path / "a.tsv", *rows_of(4)),
        tsv(tmp_path / "b.tsv", ("words",), ("x",), ("text number 1",)),
    )
    more = {"unlabelled": {"source": extra, "text": "words"}}
    found = load_data(data_of(train, train, **more))
    assert [row.id for row in found.train.rows[3:]] == ["train:5", "unlabelled:2", "unlabelled:3"]
    assert found.train.rows[-1].label is None
    assert found.train.source == f"{train} + {extra}"
    assert "train: 6 rows (0 2, 1 2, without a label 2)" in found.notes


def test_no_held_out_text_comes_back_without_a_label(tmp_path: Path) -> None:
    header, *rows = rows_of(50)
    blank = [(text, "") for text, _ in rows]
    extra = tsv(tmp_path / "b.tsv", ("words",), *[(text,) for text, _ in rows])
    more = {"unlabelled": {"source": extra, "text": "words"}}
    found = load_data(data_of(tsv(tmp_path / "a.tsv", header, *rows, *blank), **more))
    held = len(found.validation.rows)
    keys = {text_key(row.text) for row in found.validation.rows}
    assert 10 < held < 40
    assert not keys & {text_key(row.text) for row in found.train.rows}
    assert len(found.train.rows) == 3 * (50 - held)
    assert f"train: {2 * held} rows without a label removed, validation holds the text" in found.notes


def test_contradicting_labels_are_told(tmp_path: Path) -> None:
    rows = [("a", 0), ("b", 1), ("A ", 1), ("a", 1), ("b", ""), ("c", 0)]
    train = tsv(tmp_path / "a.tsv", ("text", "label"), *rows)
    found = load_data(data_of(train, tsv(tmp_path / "b.tsv", *rows_of(4))))
    assert "train: 1 text with different labels, such as lines 2 and 4 of the source" in found.notes
    assert found.doubts == Doubts(contradicting_train_texts=1)


def test_contradicting_labels_of_validation_are_told_and_shared_texts_counted(tmp_path: Path) -> None:
    train = tsv(tmp_path / "a.tsv", ("text", "label"), ("a", 0), ("b", 1))
    validation = tsv(tmp_path / "b.tsv", ("text", "label"), ("A", 0), ("c", 0), ("C", 1), ("d", 1), ("D", 0), ("D", 0))
    found = load_data(data_of(train, validation))
    assert "validation: 2 texts with different labels, such as lines 3 and 4 of the source" in found.notes
    assert found.doubts == Doubts(contradicting_validation_texts=2, shared_texts=1)


def test_given_classes_name_integers_and_absent_ones_are_told(tmp_path: Path) -> None:
    train, dev = (
        tsv(tmp_path / "a.tsv", *rows_of(6)),
        tsv(tmp_path / "b.tsv", ("text", "label"), ("x", "bad")),
    )
    found = load_data(data_of(train, dev, classes=("bad", "good", "ugly")))
    assert found.classes == ("bad", "good", "ugly")
    assert "train: 1 class without a row: ugly" in found.notes
    assert "validation: 2 classes without a row: good, ugly" in found.notes
    assert "train: 6 rows (bad 3, good 3)" in found.notes


def test_many_classes_are_counted_in_one_short_note(tmp_path: Path) -> None:
    path = tsv(tmp_path / "a.tsv", *rows_of(40, classes=20))
    note = load_data(data_of(path, path)).notes[-1]
    assert note.startswith("validation: 40 rows (0 2, 1 2,")
    assert note.endswith("11 2, 8 more)")


def test_training_rows_need_no_label_at_all(tmp_path: Path) -> None:
    train, dev = tsv(tmp_path / "a.tsv", ("text",), ("x",), ("y",)), tsv(tmp_path / "b.tsv", *rows_of(2))
    found = load_data(data_of(train, dev, train={"label": None}, classes=("no", "yes")))
    assert [row.label for row in found.train.rows] == [None, None]
    assert found.notes[0] == "train: 2 rows (without a label 2)"


BAD: list[tuple[list[tuple[object, ...]], list[tuple[object, ...]] | None, str]] = [
    (
        [("text", "label"), ("a", 1), ("b", 1)],
        None,
        "a.tsv: every label in column 'label' is '1'; training needs",
    ),
    ([("text", "label"), ("a", ""), ("b", "")], None, "a.tsv: no row has a label in column 'label'"),
    (
        [("text", "label"), ("a", 1), ("  ", 0)],
        None,
        "a.tsv, line 3: the text '  ' in column 'text' is empty",
    ),
    (
        [("text", "label"), ("a", 1), ("b", 0)],
        [("text", "label"), ("c", "")],
        "b.tsv, line 2: the label of 'c' is missing",
    ),
    (
        [("text", "label"), ("a", 1), ("b", 0)],
        [("text", "label"), ("c", 1), ("d", 2)],
        "b.tsv, line 3: the label '2' is none of the classes '0', '1'",
    ),
    ([("text", "lable"), ("a", 1)], None, "a.tsv, line 1: there is no column 'label'; did you mean 'lable'?"),
]


@pytest.mark.parametrize(("train", "validation", "words"), BAD)
def test_rows_that_cannot_be_used_are_named(
    tmp_path: Path, train: list[tuple[object, ...]], validation: list[tuple[object, ...]] | None, words: str
) -> None:
    dev = None if validation is None else tsv(tmp_path / "b.tsv", *validation)
    with pytest.raises(InputError) as error:
        load_data(data_of(tsv(tmp_path / "a.tsv", *train), dev))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "the text None in column 'text' is empty"),
        (7, "the text 7 in column 'text' must be a string"),
        ("a\0b", r"the text 'a\x00b' in column 'text' holds a NUL"),
        ("\ud800", r"the text '\ud800' in column 'text' holds a NUL or half a surrogate pair"),
        ("é\0", r"the text 'é\x00' in column 'text' holds a NUL"),
    ],
)
def test_a_text_must_be_one(tmp_path: Path, value: object, words: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("ok", value)))
    with pytest.raises(InputError) as error:
        read_texts(TextSource(source=str(path), text="text"))
    assert f"{path}, line 2: {words}" in str(error.value)


def test_a_fraction_must_leave_rows_on_both_sides(tmp_path: Path) -> None:
    path = tsv(tmp_path / "a.tsv", *rows_of(4))
    with pytest.raises(InputError, match=r"no row is held out for validation at .* 1e-09 of 4 rows; raise it"):
        load_data(data_of(path, {"fraction_of_train": 1e-9}))
    with pytest.raises(InputError, match=r"no row is left for training at .*; lower it"):
        load_data(data_of(path, {"fraction_of_train": 1 - 1e-9}))


def test_rows_of_a_run_are_read_by_its_classes(tmp_path: Path) -> None:
    path = tsv(tmp_path / "a.tsv", ("text", "label"), ("x", "good"), ("y", 0))
    split = read_rows(LabelledSource(source=path, text="text", label="label"), ("bad", "good"))
    assert split == Split("data", (Row("data:2", ("x",), 1), Row("data:3", ("y",), 0)), path)
    scored, told = tsv(tmp_path / "b.tsv", ("text", "score"), ("x", 1), ("y", 0)), Told()
    source = LabelledSource(source=scored, text="text", label=ScoreLabel.model_validate(SCORE), limit=5)
    assert [row.label for row in read_rows(source, ("bad", "good"), "test", told).rows] == [1]
    assert told.messages == ["test: 1 row dropped, score between -0.5 and 0.5"]
    with pytest.raises(InputError, match="rows to measure on need labels"):
        read_rows(LabelledSource(source=path, text="text"), ("bad", "good"))


def test_texts_are_read_without_their_labels(tmp_path: Path) -> None:
    path = tsv(tmp_path / "a.tsv", ("label", "text"), ("???", "x"), ("", "y"))
    split = read_texts(TextSource(source=path, text="text", limit=1), "predict")
    assert len(split.rows) == 1
    assert split.rows[0].label is None
    assert split.rows[0].id in ("predict:2", "predict:3")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("table.xlsx", "files ending in '.xlsx' are not read; convert it to one of .tsv, .txt, .csv"),
        ("imdb", "'imdb' does not say what it is; name a file ending in"),
        ("a/b.tsv.gz", "files ending in '.gz' are not read"),
        ("x" * 5000, "does not say what it is"),
        ("pypi:name==1.0/a.zip!b/c.rst#sha256=00", "files ending in '.rst' are not read"),
        ("pypi:name==1.0/notes", "does not say what it is"),
        ("gone.tsv", "gone.tsv"),
    ],
)
def test_a_source_of_an_unknown_kind_says_what_is_read(spec: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        read_texts(TextSource(source=spec, text="text"))
    assert words in str(error.value)
    assert len(str(error.value)) < 400


def test_a_folder_and_a_file_without_a_suffix_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("owner/name/train").mkdir(parents=True)
    with pytest.raises(InputError, match="owner/name/train is a folder; name one file in it"):
        read_texts(TextSource(source="owner/name/train", text="text"))
    Path("owner/name/file").write_text("text\nx\n")
    with pytest.raises(InputError, match="'owner/name/file' does not say what it is"):
        read_texts(TextSource(source="owner/name/file", text="text"))


def test_a_package_file_is_read_by_the_suffix_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "5d7c06"
    cached.write_text("7\tgood\n")
    monkeypatch.setattr(assets, "resolve_file", lambda spec, progress: cached)
    spec = "pypi:name==1.0/name/a.tgz!b/c.TXT#sha256=00"
    split = read_texts(TextSource(source=spec, text="text", columns=("id", "text")))
    assert split == Split("data", (Row("data:1", ("good",), None),), spec)
    cached.write_text("7\n")
    with pytest.raises(InputError, match=r"^pypi:name==1.0/name/a.tgz!b/c.TXT, line 1: the row '7'"):
        read_texts(TextSource(source=spec, text="text", columns=("id", "text")))


def test_nothing_heavy_is_imported() -> None:
    heavy = ("torch", "pyarrow", "datasets", "numpy")
    code = f"import sys, llm_neo.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def glue(folder: Path, text: str | tuple[str, str]) -> Data:
    """The data section for train.tsv and dev.tsv of a folder."""
    files = {"train": "train.tsv", "validation": "dev.tsv"}
    return Data.model_validate(
        {key: {"source": str(folder / file), "text": text, "label": "label"} for key, file in files.items()}
    )


def test_sst2_loads(shared_data: Path) -> None:
    found = load_data(glue(shared_data / "sst2", "sentence"))
    assert Counter(row.label for row in found.train.rows) == {0: 29_780, 1: 37_569}
    assert Counter(row.label for row in found.validation.rows) == {0: 428, 1: 444}
    assert found.train.rows[0] == Row("train:2", ("hide new secretions from the parental units",), 0)
    assert found.notes[0].startswith("train: 5 texts with different labels")
    assert not any("flatter" in note for note in found.notes)


def test_sst2_takes_half_a_second(shared_data: Path) -> None:
    # In a process of its own, so that a coverage tracer does not count; the bound leaves room on a busy core
    code = (
        "import sys, time; from llm_neo.data import load_data; from llm_neo.recipe.tree import Data; "
        "data = Data.model_validate_json(sys.argv[1]); began = time.process_time(); load_data(data); "
        "print(time.process_time() - began)"
    )
    recipe = glue(shared_data / "sst2", "sentence").model_dump_json()
    done = subprocess.run([sys.executable, "-c", code, recipe], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.5


def test_rte_pairs_load(shared_data: Path) -> None:
    found = load_data(glue(shared_data / "rte", ("sentence1", "sentence2")))
    assert found.classes == ("entailment", "not_entailment")
    assert (len(found.train.rows), len(found.validation.rows)) == (2490, 277)
    assert all(len(row.text) == 2 for row in found.train.rows)
