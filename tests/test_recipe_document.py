"""YAML 1.2 to plain values: what words, numbers and broken texts come out as."""

import pytest

from llm_neo.recipe.document import DocumentError, dump, parse, show


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 5e-5),
        ("1.0e+3", 1000.0),
        ("017", 17),
        ("0o17", 15),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("# only a comment", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("2024-01-01", "2024-01-01"),
        ("12:30:45", "12:30:45"),
        ("=", "="),
        ("'5'", "5"),
        ("[a, 1, [b]]", ("a", 1, ("b",))),
        ("{1: a, yes: b, ~: c}", {"1": "a", "yes": "b", "~": "c"}),
        ("a: &x [1]\nb: *x", {"a": (1,), "b": (1,)}),
        ('" negative"', " negative"),
        ("pypi:a==1/b.tar.gz!c/d.txt#sha256=0f", "pypi:a==1/b.tar.gz!c/d.txt#sha256=0f"),
    ],
)
def test_a_text_has_the_value_that_yaml_1_2_gives_it(text: str, value: object) -> None:
    parsed = parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key a is given twice; keep one of them"),
        ("a:\n  b: [1, 2", "line 2, column 11: not valid YAML: while parsing a flow sequence"),
        ("a: *nowhere", "line 1, column 4: not valid YAML: found undefined alias 'nowhere'"),
        (
            "a: !!binary aGk=",
            "line 1, column 4: the tag tag:yaml.org,2002:binary has no meaning in a recipe; remove",
        ),
        ("a: !mine x", "line 1, column 4: the tag !mine has no meaning in a recipe; remove it"),
        ("a: 1\n---\nb: 2", "line 2, column 1: not valid YAML: expected a single document"),
        ("? [a]\n: b", "line 1, column 3: a key must be a word"),
        ('a: "x\\0"', "line 1, column 4: text must be valid Unicode without NUL characters"),
        ('a: "\\ud800"', "line 1, column 4: text must be valid Unicode"),
        ("a: !!int x", 'line 1, column 4: "x" is not a number'),
        ("a: " + "9" * 5000, "is not a number"),
        ("a: \a", "not valid YAML: unacceptable character #x0007"),
        ("a: &a [*a]", "nested too deep or too long"),
        ("[" * 5000, "nested too deep"),
    ],
)
def test_a_broken_text_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(DocumentError) as refused:
        parse(text)
    assert message in str(refused.value)


def test_aliases_cannot_multiply_a_small_text_without_bound() -> None:
    """Ten levels of nine aliases each stand for 9^10 values."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 11)]
    with pytest.raises(DocumentError, match="too long for a recipe"):
        parse("\n".join(levels))


def test_dumped_words_and_numbers_mean_the_same_to_yaml_1_1_readers() -> None:
    document = {"rate": 5e-5, "word": "yes", "number": "1e3", "items": ("a", 1.0, None), "empty": ()}
    text = dump(document)
    assert text == "rate: 5.0e-05\nword: 'yes'\nnumber: '1e3'\nitems: [a, 1.0, null]\nempty: []\n"
    assert parse(text) == document


def test_a_long_value_is_quoted_in_part() -> None:
    assert show("é") == '"é"'
    assert show((1, None, True)) == "[1, null, true]"
    assert show("x" * 100) == '"' + "x" * 56 + "..."


def test_an_anchor_used_again_means_its_last_place_and_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    assert parse("[&a 1, *a, &a 2, *a]") == (1, 1, 2, 2)
    assert len(recwarn) == 0
