"""Any bytes in a data file load as the rows that they are, or raise one InputError with a sentence; nothing else."""

import codecs
import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from budget import THOROUGH, examples
from hypothesis import given
from hypothesis import strategies as st

from llm_neo.data import load_data, read_texts
from llm_neo.errors import InputError
from llm_neo.recipe.tree import Data, TextSource

SUFFIXES = [".tsv", ".csv", ".jsonl", ".json", ".parquet", ".txt", ".ndjson"]
MEGABYTE = 2**20
LONG = 10 * MEGABYTE
"""Characters of the longest line."""
FORBIDDEN = "\0\r\n\t"
PLAIN = st.text(st.characters(exclude_characters=FORBIDDEN, exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: text.strip() != ""
)
QUOTED = st.sampled_from(
    ['say "good"', "a,b", "it's", '"', "two\nlines", "end\r\nstart", " padded ", "\ufeffbom", "é", "=1+1"]
)
TEXTS = st.sampled_from(["good", " bad ", "so so", "Good", "é"])
LABELS = st.sampled_from(["0", "1"] * 6 + ["1.0", "-3", ""])
CELLS = st.text(st.sampled_from("ab\"',\t\n\r\\{}[]:01é\u2028\0 \ufeff"), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["text", "x"]), inner),
    max_leaves=4,
)
Rows = list[tuple[str, int]]
outcomes: Counter[str] = Counter()


def write(suffix: str, rows: Rows, ending: str, names: tuple[str, str] = ("text", "label")) -> bytes:
    """The rows in the format of the suffix, by another writer than ours."""
    if suffix == ".parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.table({names[0]: [text for text, _ in rows], names[1]: [label for _, label in rows]}), buffer)
        return buffer.getvalue()
    if suffix == ".json":
        return json.dumps([dict(zip(names, row, strict=True)) for row in rows]).encode()
    if suffix in (".jsonl", ".ndjson"):
        lines = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in rows]
        return (ending.join(lines) + ending).encode()
    if suffix == ".csv":
        out = io.StringIO()
        csv.writer(out, lineterminator=ending).writerows([names, *rows])
        return out.getvalue().encode()
    return (ending.join("\t".join(map(str, row)) for row in [names, *rows]) + ending).encode()


@st.composite
def sound(draw: st.DrawFn) -> tuple[str, bytes, Rows]:
    """A file that is right, and its rows."""
    suffix = draw(st.sampled_from(SUFFIXES))
    cells = PLAIN if suffix in (".tsv", ".txt") else PLAIN | QUOTED
    found = draw(st.lists(st.tuples(cells, st.sampled_from([0, 1])), min_size=0, max_size=8))
    rows = [("first", 0), ("second", 1), *found]
    if draw(st.integers(0, 19)) == 0:
        rows.append((draw(st.sampled_from(["x", "ab ", "é"])) * draw(st.sampled_from([10_000, 200_000])) + "!", 1))
    data = write(suffix, rows, draw(st.sampled_from(["\n", "\r\n"])))
    return suffix, (b"\xef\xbb\xbf" if suffix != ".parquet" and draw(st.booleans()) else b"") + data, rows


def table(draw: st.DrawFn, separator: str) -> str:
    """Rows that are right for the most part."""
    ending = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    row = st.tuples(TEXTS, LABELS).map(list)
    rows = draw(st.lists(row, min_size=1, max_size=6))
    rows += draw(st.just([]) | st.lists(st.lists(CELLS, min_size=0, max_size=4), max_size=2))
    header = draw(st.sampled_from([["text", "label"]] * 5 + [["text", "text"], ["label", "text", "label"], ["", ""]]))
    return ending.join(map(separator.join, [header, *rows])) + draw(st.sampled_from(["", ending, ending * 3]))


def objects(draw: st.DrawFn) -> str:
    """Objects that are right for the most part, as JSON lines or a JSON list."""
    label = st.sampled_from([0, 1] * 6 + [1.0, True, None, "0", "word"])
    item = st.fixed_dictionaries({"text": TEXTS, "label": label})
    items: list[Any] = draw(st.lists(item, min_size=1, max_size=6))
    items += draw(st.just([]) | st.lists(VALUES | st.fixed_dictionaries({"text": VALUES, "label": VALUES}), max_size=2))
    lines = [json.dumps(item) for item in items]
    lines += draw(
        st.sampled_from([[]] * 5 + [['{"text": "a", "text": "b", "label": 1}'], ["[" * 5000], ["NaN"], ["1e999"]])
    )
    return draw(st.sampled_from([f"[{','.join(lines)}]", "\n".join(lines)]))


@st.composite
def any_file(draw: st.DrawFn) -> tuple[str, bytes]:
    """A suffix and bytes that are such a file, nearly one, or none at all."""
    suffix, data, _ = draw(sound())
    if draw(st.booleans()) and suffix != ".parquet":
        content = draw(st.sampled_from([suffix] * 5 + [".csv", ".json"]))
        text = objects(draw) if "json" in content else table(draw, "," if content == ".csv" else "\t")
        encoding = draw(st.sampled_from(["utf-8"] * 8 + ["utf-16", "utf-32", "latin-1", "cp1252"]))
        data = draw(st.sampled_from([b""] * 6 + [b"\xef\xbb\xbf", b"\xff\xfe", b"\xef\xbb\xbf" * 2]))
        data += text.encode(encoding, "replace")
    cut = draw(st.integers(0, len(data)))
    noise = draw(
        st.sampled_from([b""] * 9 + [b"\xe9", b"\0", b'"', b"\n\n", b"\t", b",", b"\x1b[2J"]) | st.binary(max_size=3)
    )
    tail = draw(st.sampled_from([data[cut:]] * 6 + [b"", data]))
    return suffix, data[:cut] + noise + tail


def data_of(path: Path, **more: Any) -> Data:
    source = {"source": str(path), "text": "text", "label": "label"}
    return Data.model_validate({"train": source, "validation": source} | more)


def assert_is_a_sentence(error: InputError, path: Path) -> None:
    said = str(error)
    assert str(path) in said and "\n" not in said and said.isprintable() and len(said) < 1500
    said.encode()


@examples(300, 2000)
@given(sound())
def test_a_file_that_is_right_loads_as_its_rows(
    tmp_path_factory: pytest.TempPathFactory, file: tuple[str, bytes, Rows]
) -> None:
    suffix, data, rows = file
    path = tmp_path_factory.getbasetemp() / f"sound{suffix}"
    path.write_bytes(data)
    try:
        found = load_data(data_of(path))
    except InputError as error:
        # What a foreign writer may write and we do not take for text.
        assert any("\0" in text or text.strip("\ufeff").strip() == "" for text, _ in rows), error  # noqa: PT017
        return
    assert [(row.text[0], row.label) for row in found.train.rows] == [(text.strip(), label) for text, label in rows]
    assert found.classes == ("0", "1")
    outcomes["loaded"] += 1


@examples(300, 2500)
@given(
    file=any_file(),
    label=st.sampled_from(["label", {"column": "label", "negative_below": 0.0, "positive_above": 1.0}]),
    validation=st.sampled_from([None, {"fraction_of_train": 0.5}]),
    columns=st.sampled_from([None] * 6 + [("text", "label")]),
)
def test_any_bytes_load_or_raise_an_input_error(
    tmp_path_factory: pytest.TempPathFactory,
    file: tuple[str, bytes],
    label: Any,
    validation: Any,
    columns: tuple[str, ...] | None,
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{file[0]}"
    path.write_bytes(file[1])
    source = {"source": str(path), "text": "text", "label": label, "columns": columns}
    try:
        found = load_data(Data.model_validate({"train": source, "validation": validation or source}))
    except InputError as error:
        outcomes["refused"] += 1
        assert_is_a_sentence(error, path)
    else:
        outcomes["loaded"] += 1
        assert len(found.classes) >= 2
        for row in (*found.train.rows, *found.validation.rows):
            assert row.text[0] == row.text[0].strip() != ""
            assert row.label is None or 0 <= row.label < len(found.classes)
        assert all(row.label is not None for row in found.validation.rows)
        "\n".join([*found.classes, *found.notes, found.train.fingerprint]).encode()
    try:
        read_texts(TextSource(source=str(path), text="text"))
    except InputError as error:
        assert_is_a_sentence(error, path)


def test_both_outcomes_were_met() -> None:
    if outcomes.total():
        assert min(outcomes["loaded"], outcomes["refused"]) > 0.15 * outcomes.total()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_line_of_10_mb_loads_whole(tmp_path: Path, suffix: str) -> None:
    long = "good film " * (LONG // 10)
    path = tmp_path / f"long{suffix}"
    path.write_bytes(write(suffix, [("short", 0), (long, 1), ("after", 0)], "\r\n"))
    found = load_data(data_of(path))
    assert [row.text[0] for row in found.train.rows] == ["short", long.strip(), "after"]


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".json", ".txt"])
@pytest.mark.parametrize("content", ["a", '"', "[", "\0", "\t", ",", '{"text":', "\r"])
def test_10_mb_of_one_thing_are_refused_in_a_sentence(tmp_path: Path, suffix: str, content: str) -> None:
    path = tmp_path / f"same{suffix}"
    path.write_bytes(content.encode() * (LONG // len(content)))
    with pytest.raises(InputError) as raised:
        load_data(data_of(path))
    assert_is_a_sentence(raised.value, path)


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\n", b" \r\n ", codecs.BOM_UTF16_LE, b"PAR1", b"PAR1PAR1"])
def test_an_empty_file_is_refused_in_a_sentence(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"empty{suffix}"
    path.write_bytes(data)
    with pytest.raises(InputError) as raised:
        load_data(data_of(path))
    assert_is_a_sentence(raised.value, path)


def test_half_a_file_in_another_encoding_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mixed.tsv"
    path.write_bytes("text\tlabel\ncafé\t1\n".encode() + "café\t0\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"mixed\.tsv, line 3: .* is not UTF-8; save the file as UTF-8"):
        load_data(data_of(path))


def test_the_thorough_run_is_as_large_as_promised() -> None:
    tests = (test_a_file_that_is_right_loads_as_its_rows, test_any_bytes_load_or_raise_an_input_error)
    drawn = sum(test._hypothesis_internal_use_settings.max_examples for test in tests)  # type: ignore[attr-defined]
    assert drawn >= (2000 if THOROUGH else 500)
