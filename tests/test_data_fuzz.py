"""Any bytes in a data file either load as a whole or raise one InputError, never anything else."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_neo.data import load_data
from llm_neo.errors import InputError
from llm_neo.recipe.tree import Data

TEXTS = st.sampled_from(["good", " bad ", "so so", "Good", "é"])
LABELS = st.sampled_from(["0", "1"] * 6 + ["1.0", "-3", ""])
CELLS = st.text(st.sampled_from("ab\"',\t\n\r\\{}[]:01é\u2028\0 \ufeff"), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["text", "x"]), inner),
    max_leaves=4,
)


def table(draw: st.DrawFn, separator: str) -> str:
    """Rows that are right for the most part."""
    ending = draw(st.sampled_from(["\n", "\r\n"]))
    row = st.tuples(TEXTS, LABELS).map(list)
    rows = draw(st.lists(row, min_size=1, max_size=6))
    rows += draw(st.just([]) | st.lists(st.lists(CELLS, min_size=2, max_size=3), max_size=2))
    lines = ["text" + separator + "label", *(separator.join(row) for row in rows)]
    return ending.join(lines) + draw(st.sampled_from(["", ending]))


def objects(draw: st.DrawFn) -> str:
    """Objects that are right for the most part, as JSON lines or a JSON list."""
    label = st.sampled_from([0, 1] * 6 + [1.0, True, None, "0", "word"])
    item = st.fixed_dictionaries({"text": TEXTS, "label": label})
    items: list[Any] = draw(st.lists(item, min_size=1, max_size=6))
    items += draw(st.just([]) | st.lists(VALUES | st.fixed_dictionaries({"text": VALUES, "label": VALUES}), max_size=2))
    return draw(st.sampled_from([json.dumps(items), "\n".join(json.dumps(item) for item in items)]))


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A suffix and bytes that are such a file, nearly one, or none at all."""
    suffix = draw(st.sampled_from([".tsv", ".csv", ".jsonl", ".json"]))
    content = draw(st.sampled_from([suffix] * 5 + [".csv", ".json"]))
    text = objects(draw) if content.startswith(".json") else table(draw, "," if content == ".csv" else "\t")
    data = draw(st.sampled_from([b""] * 6 + [b"\xef\xbb\xbf", b"\xff\xfe"])) + text.encode()
    cut = draw(st.integers(0, len(data)))
    return suffix, data[:cut] + draw(st.sampled_from([b""] * 7 + [b"\xe9", b"\0", b'"', b"\n\n"])) + data[cut:]


@settings(max_examples=300, deadline=None)
@given(
    file=files(),
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
    recipe = Data.model_validate({"train": source, "validation": validation or source})
    try:
        found = load_data(recipe)
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017  # either outcome is right, and each has its own conditions
        str(error).encode()
    else:
        assert len(found.classes) >= 2
        for row in (*found.train.rows, *found.validation.rows):
            assert row.text[0] == row.text[0].strip() != ""
            assert row.label is None or 0 <= row.label < len(found.classes)
        assert all(row.label is not None for row in found.validation.rows)
        "\n".join([*found.classes, *found.notes, found.train.fingerprint]).encode()
