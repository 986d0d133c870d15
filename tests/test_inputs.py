"""Texts to predict on, from words, files and stdin."""

import io
from pathlib import Path

import pytest

from llm_neo.errors import InputError
from llm_neo.inputs import texts_for
from llm_neo.recipe import dump_recipe, load_recipe

NOTHING = io.BytesIO()


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """A run on single texts, as far as its recipe goes."""
    return run_of(tmp_path / "single", [])


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A run on pairs of texts in the columns a and b."""
    return run_of(tmp_path / "pair", ["data.train={source: t.tsv, text: [a, b], label: y}"])


def run_of(folder: Path, overrides: list[str]) -> Path:
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump_recipe(load_recipe("quickstart", overrides)), encoding="utf-8")
    return folder


def test_words_are_texts(single: Path, pair: Path) -> None:
    assert texts_for(single, ["good ", "a\tb"], None, NOTHING) == [("good",), ("a\tb",)]
    assert texts_for(pair, ["a one\t b"], None, NOTHING) == [("a one", "b")]


def test_stdin_holds_a_text_a_line(single: Path, pair: Path) -> None:
    stdin = io.BytesIO("\ufeffgood é\r\nbad\n\n\n".encode())
    assert texts_for(single, [], None, stdin) == [("good é",), ("bad",)]
    assert texts_for(pair, [], None, io.BytesIO(b"a\tb\nc\td")) == [("a", "b"), ("c", "d")]


def test_a_text_file_holds_a_text_a_line(single: Path, tmp_path: Path) -> None:
    (tmp_path / "t.TXT").write_text('one "two\nthree\n', encoding="utf-8")
    assert texts_for(single, [], tmp_path / "t.TXT", NOTHING) == [('one "two',), ("three",)]


def test_a_table_is_read_by_the_columns_of_the_recipe(single: Path, pair: Path, tmp_path: Path) -> None:
    """The text column is enough: no label is needed, and the list of columns belonged to another file."""
    (tmp_path / "t.tsv").write_text("id\ttext\n1\tgood\n2\tbad\n", encoding="utf-8")
    assert texts_for(single, [], tmp_path / "t.tsv", NOTHING) == [("good",), ("bad",)]
    (tmp_path / "t.jsonl").write_text('{"b": "2", "a": "1"}\n', encoding="utf-8")
    assert texts_for(pair, [], tmp_path / "t.jsonl", NOTHING) == [("1", "2")]


@pytest.mark.parametrize(
    ("words", "file", "stdin", "message"),
    [
        ([], None, b"", "there is no text; give some as arguments, by --file, or one a line on stdin"),
        ([], None, b"\n \n", "there is no text"),
        (["a", " "], None, b"", "text 2: ' ' holds an empty or unreadable text; correct or remove it"),
        (["a\udcff"], None, b"", "text 1: 'a\\udcff' holds an empty or unreadable text"),
        ([], None, b"a\n\nb\n", "stdin, line 2: '' holds an empty or unreadable text"),
        ([], None, b"a\n\xff\n", "stdin, line 2: b'\\xff' is not UTF-8; save it as UTF-8"),
        (["a"], "t.txt", b"", "texts and --file exclude one another; give one of them"),
        ([], "nowhere/at/all", b"", "nowhere/at/all is not a file; correct its path"),
        ([], "t.txt", b"", "t.txt, line 2: '\\x00' holds an empty or unreadable text"),
        ([], "t.tsv", b"", "t.tsv"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(
    single: Path, tmp_path: Path, words: list[str], file: str | None, stdin: bytes, message: str
) -> None:
    (tmp_path / "t.txt").write_bytes(b"a\n\0")
    (tmp_path / "t.tsv").write_bytes(b"other\nx\n")
    with pytest.raises(InputError) as refused:
        texts_for(single, words, tmp_path / file if file else None, io.BytesIO(stdin))
    assert message in str(refused.value)


@pytest.mark.parametrize("line", ["one", "one\ttwo\tthree"])
def test_a_pair_is_two_texts(pair: Path, line: str) -> None:
    with pytest.raises(InputError, match=r"text 1: .* must be two texts with one TAB between them"):
        texts_for(pair, [line], None, NOTHING)


def test_a_folder_without_a_recipe_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no run: it has no recipe\.yaml; name the folder of a finished"):
        texts_for(tmp_path, ["a"], None, NOTHING)
