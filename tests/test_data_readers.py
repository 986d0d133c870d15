"""Files to records: what each format accepts, and one error with file, line and value for the rest."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_neo.data.columnar import read_parquet
from llm_neo.data.readers import read_csv, read_json, read_json_lines, read_tsv
from llm_neo.data.source import READERS
from llm_neo.data.table import Table, listed, repeated, shown
from llm_neo.errors import InputError

WANTED = ("text", "label")


def read(tmp_path: Path, name: str, data: bytes, columns: tuple[str, ...] | None = None) -> Table:
    """`data` as the file `name`, through the reader of its suffix."""
    path = tmp_path / name
    path.write_bytes(data)
    return READERS[path.suffix](path, name, WANTED, columns)


def test_tsv_keeps_quotes_and_the_lines_of_the_file(tmp_path: Path) -> None:
    table = read(tmp_path, "a.tsv", b'label\tid\ttext\n1\t7\t"quoted\n0\t8\tit "is"\n\n')
    assert table.records == [(2, ('"quoted', "1")), (3, ('it "is"', "0"))]
    assert table.at(3) == "a.tsv, line 3"


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["a.tsv", "a.txt", "a.csv", "a.jsonl", "a.ndjson", "a.json"])
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(
    tmp_path: Path, name: str, mark: bytes, ending: bytes
) -> None:
    lines = {
        ".csv": ["text,label", "é,1", "b,0"],
        ".tsv": ["text\tlabel", "é\t1", "b\t0"],
        ".json": ['{"text": "é", "label": "1"}', '{"label": "0", "text": "b"}'],
    }
    kind = {".txt": ".tsv", ".jsonl": ".json", ".ndjson": ".json"}.get(Path(name).suffix, Path(name).suffix)
    data = mark + ending.join(line.encode() for line in lines[kind]) + ending
    first = 1 if kind == ".json" else 2
    assert read(tmp_path, name, data).records == [(first, ("é", "1")), (first + 1, ("b", "0"))]


def test_columns_name_the_cells_of_a_file_without_a_header(tmp_path: Path) -> None:
    table = read(tmp_path, "a.txt", b"7\t1\tgood\r\n8\t0\tbad\r\n", ("id", "label", "text"))
    assert table.records == [(1, ("good", "1")), (2, ("bad", "0"))]


def test_csv_numbers_a_record_by_its_first_line(tmp_path: Path) -> None:
    table = read(tmp_path, "a.csv", b'text,label\n"two\nlines, ""quoted""",1\n"a\r\n\r\nb",0\nlast,1\n')
    assert table.records == [
        (2, ('two\nlines, "quoted"', "1")),
        (4, ("a\r\n\r\nb", "0")),
        (7, ("last", "1")),
    ]


def test_lines_of_ten_megabytes_are_read(tmp_path: Path) -> None:
    long = "x" * 10_000_000
    for name, data in {
        "a.tsv": f"text\tlabel\n{long}\t1\n",
        "a.csv": f"text,label\n{long},1\n",
        "a.jsonl": json.dumps({"text": long, "label": "1"}),
    }.items():
        assert read(tmp_path, name, data.encode()).records[0][1] == (long, "1")
    for name, data in {
        "b.tsv": f"text\tlabel\n{long}\n",
        "b.csv": f'text,label\n"{long}\n',
        "b.json": f"[{long}",
    }.items():
        with pytest.raises(InputError) as error:
            read(tmp_path, name, data.encode())
        assert len(str(error.value)) < 300
    with pytest.raises(InputError, match="occurs twice"):
        read(tmp_path, "c.tsv", b"x" + b"\t" * 1_000_000)


def test_json_lines_may_leave_a_key_out_and_hold_line_separators(tmp_path: Path) -> None:
    data = '{"text": "a\u2028b", "label": 1}\n{"text": "c"}\n{"text": "d", "label": null, "more": [1, {"x": 2}]}'
    table = read(tmp_path, "a.jsonl", data.encode())
    assert table.records == [(1, ("a\u2028b", 1)), (2, ("c", None)), (3, ("d", None))]


def test_a_json_list_is_numbered_by_rows(tmp_path: Path) -> None:
    table = read(tmp_path, "a.json", b'\n[{"text": "a", "label": true},\n {"text": "b", "label": 2}]')
    assert table.records == [(1, ("a", True)), (2, ("b", 2))]
    assert table.at(2) == "a.json, row 2"


BAD = [
    ("a.tsv", b"", "a.tsv is empty"),
    ("a.tsv", b"\xef\xbb\xbf\n \n", "a.tsv is empty"),
    ("a.tsv", b"text\tlabel\n", "a.tsv has a header line but no rows"),
    (
        "a.tsv",
        b"text\tlabel\na\t1\ncaf\xe9\t0\n",
        r"a.tsv, line 3: b'text\tlabel\na\t1\ncaf\xe9\t0\n' is not UTF-8",
    ),
    ("a.tsv", "text\tlabel\n".encode("utf-16"), "it looks like UTF-16; save the file as UTF-8"),
    ("a.tsv", b"text\tlabel\na\x00b\t1\n", "a.tsv, line 2: 'text\\tlabel\\na\\x00b\\t1\\n' holds a NUL"),
    ("a.tsv", b"text\tlabel\na\t1\nb\n", "line 3: the row 'b' has 1 cell, but the header line has 2; add"),
    ("a.tsv", b"text\tlabel\na\tb\t1\n", "a.tsv, line 2: the row 'a' has 3 cells, but"),
    ("a.tsv", b"text\tlabel\na\t1\n\nb\t1\n", "a.tsv, line 3: the line is empty; delete it"),
    ("a.tsv", b"text\tlabel\ttext\na\t1\tb\n", "a.tsv, line 1: the column name 'text' occurs twice"),
    ("a.tsv", b"txt\tlabel\na\t1\n", "'text'; did you mean 'txt'? The columns are 'txt', 'label'."),
    ("a.tsv", b"7\tgood\n8\tbad\n", "'7', 'good'. If this line is a row already, name the columns"),
    ("a.csv", b"text;label\na;1\n", "a.csv, line 1: there is no column 'text'"),
    ("a.csv", b"Text,label\na,1\n", "did you mean 'Text'?"),
    ("a.csv", b"text,label\na,1\n\nb,1\n", "a.csv, line 3: the line is empty"),
    ("a.csv", b"text,label\na, b,1\n", "line 2: the row 'a' has 3 cells, but the header line has 2; put"),
    ("a.csv", b'text,label\n"a\nb"c,1\n', "a.csv, line 2: '\"a\\n' is not CSV as RFC 4180 has it"),
    ("a.csv", b'text,label\na,1\n"b,1\nc,1\n', "a.csv, line 3: '\"b,1\\n' is not CSV"),
    ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"\n', 'line 2: \'{"text": "b"\' is invalid JSON'),
    ("a.jsonl", b'{"text": "a", "label": 1}\n\n{}', "a.jsonl, line 2: the line is empty"),
    ("a.jsonl", b'["a", 1]\n', "a.jsonl, line 1: ['a', 1] is not a JSON object"),
    ("a.jsonl", b'{"text": "a", "text": "b", "label": 1}\n', "is invalid JSON (the key 'text' occurs twice)"),
    ("a.jsonl", b'{"text": "a", "lable": 1}\n', "a.jsonl: there is no column 'label'; did you mean 'lable'?"),
    ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}\n", 'a.jsonl, line 1: \'{"text": 999'),
    ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1: '[[[["),
    ("a.json", b"[" * 100_000, "a.json: invalid JSON"),
    (
        "a.json",
        b'[{"text": "a"},\n {"text" "b"}]',
        "line 2: invalid JSON (Expecting ':' delimiter) at '\"b\"}]'",
    ),
    ("a.json", b"[]", "a.json is an empty list"),
    ("a.json", b"[1]", "a.json, row 1: 1 is not a JSON object"),
    ("a.json", b'{"data": []}', "there is no column 'text'; The columns are 'data'."),
    ("a.parquet", b"PAR1", "a.parquet cannot be read as Parquet"),
]


@pytest.mark.parametrize(("name", "data", "words"), BAD)
def test_one_error_names_file_line_and_value(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, name, data)
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet"])
def test_columns_are_refused_where_the_file_names_them(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="remove `columns`"):
        read(tmp_path, name, b"[{}]", ("text", "label"))


def test_columns_that_do_not_fit_the_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 1: the row 'a' has 3 cells, but columns in the recipe has 2"):
        read(tmp_path, "a.tsv", b"a\t1\t2\n", ("text", "label"))
    with pytest.raises(InputError, match=r"a.tsv, columns of the recipe: there is no column 'text'"):
        read(tmp_path, "a.tsv", b"a\t1\n", ("sentence", "label"))


@pytest.mark.parametrize("reader", [read_tsv, read_csv, read_json, read_json_lines, read_parquet])
def test_a_file_that_cannot_be_opened_is_an_input_error(tmp_path: Path, reader: object) -> None:
    with pytest.raises(InputError, match=r"gone cannot be read.*"):
        reader(tmp_path / "gone", "gone", WANTED, None)  # type: ignore[operator]


def test_parquet_keeps_types_and_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table(
        {
            "a.b": [0, 1, None],
            "label": [1.0, None, 0.0],
            "text": pa.array(["x", "y", "x"]).dictionary_encode(),
        }
    )
    pq.write_table(table, path)
    found = read_parquet(path, "a.parquet", ("text", "label", "a.b"), None)
    assert found.records == [(1, ("x", 1.0, 0)), (2, ("y", None, 1)), (3, ("x", 0.0, None))]
    assert found.at(3) == "a.parquet, row 3"
    assert found.class_names == {}


def test_parquet_keeps_the_class_names_of_the_datasets_library(tmp_path: Path) -> None:
    features = {
        "label": {"names": ["no", "yes"], "_type": "ClassLabel"},
        "text": {"_type": "Value"},
        "odd": 3,
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"text": ["x"], "label": [1]}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_parquet(tmp_path / "a.parquet", "a", WANTED, None).class_names == {"label": ("no", "yes")}


@pytest.mark.parametrize("metadata", ["{", "[]", '{"info": null}', '{"info": {"features": [1]}}'])
def test_strange_metadata_of_parquet_is_left_alone(tmp_path: Path, metadata: str) -> None:
    table = pa.table({"text": ["x"], "label": [1]}).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_parquet(tmp_path / "a.parquet", "a", WANTED, None).class_names == {}


def test_bad_parquet_files_are_input_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"], "labels": [1]}), path)
    with pytest.raises(InputError, match=r"a: there is no column 'label'; did you mean 'labels'\?"):
        read_parquet(path, "a", WANTED, None)
    pq.write_table(pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}), path)
    with pytest.raises(InputError, match="a has no rows"):
        read_parquet(path, "a", WANTED, None)
    text = pa.array([b"fine", b"caf\xe9"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": text, "label": [0, 1]}), path)
    with pytest.raises(InputError, match=r"a, row 2: the value in column 'text' cannot be read .*0xe9"):
        read_parquet(path, "a", WANTED, None)


def test_values_are_cut_where_they_are_shown() -> None:
    assert shown("a" * 60) == repr("a" * 60)
    assert shown("a" * 61) == repr("a" * 60) + "..."
    assert shown("\ud800") == r"'\ud800'"
    assert shown(list(range(100))).endswith("...")
    assert listed(("a", "b")) == "'a', 'b'"
    assert listed([str(number) for number in range(15)]).endswith("'11' and 3 more")
    with pytest.raises(ValueError, match="no name"):
        repeated(["a", "b"])
