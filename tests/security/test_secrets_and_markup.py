"""Planted secrets are nowhere in what a command prints or writes; a name of others is text, in a card, on a screen."""

import hashlib
import html
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from assets_builders import Answer, closed_port, index_of, serve, tar_of, zip_of
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from records import run_record, scored
from rich.console import Console
from tiny_runs import PROMPT, RECIPE, material, run_of

from llm_neo.cli import main
from llm_neo.errors import InputError
from llm_neo.printing import one_line, printable, redacted
from llm_neo.recipe import Recipe, load_recipe
from llm_neo.report import model_card, summary
from llm_neo.report.markdown import code, plain

SECRETS = {
    "HF_TOKEN": "hf_planted4Ugk2",
    "HUGGING_FACE_HUB_TOKEN": "hf_planted9Zzt1",
    "WANDB_API_KEY": "wandbplanted77aa",
    "AWS_SECRET_ACCESS_KEY": "awsplanted/33+x",
    "MY_DATABASE_PASSWORD": "pw-planted-0815",
}
LOGIN, PASSWORD = "ada-planted", "pass-planted-42"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with everything of a run, and planted secrets all around it."""
    monkeypatch.chdir(material(tmp_path))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.setenv("LLM_NEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def leaks(folder: Path, shown: str) -> list[str]:
    """Where a planted secret is found: in what was shown, and in which files."""
    secrets = [*SECRETS.values(), LOGIN, PASSWORD]
    found = [f"shown: {secret}" for secret in secrets if secret in shown]
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            content = file.read_bytes()
            found += [f"{file.name}: {secret}" for secret in secrets if secret.encode() in content]
    return found


def test_a_whole_run_holds_no_secret_anywhere(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["recipe.yaml", PROMPT, "output=run", "trackers=[tensorboard]"]
    assert main(["distill", *words]) == 0
    assert main(["predict", "run", "good film"]) == 0
    assert main(["export", "run", "--to", "merged"]) == 0
    out, err = capfd.readouterr()
    assert (here / "run" / "run.json").is_file() and leaks(here, out + err) == []


@pytest.fixture(params=["refused login", "wrong bytes", "nobody there", "no such package", "a server that fails"])
def index(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """The address of an index, who logs in included, that cannot give the package; and the package's pin."""
    login, body = f"{LOGIN}:{PASSWORD}", zip_of({"toy/rows.tsv": b"x"})
    pin = hashlib.sha256(b"other" if request.param == "wrong bytes" else body).hexdigest()
    if request.param == "nobody there":
        with closed_port() as url:
            yield url.replace("://", f"://{login}@") + "/simple", pin
        return
    answers = {} if request.param == "no such package" else index_of("toy", {"toy-1.0-py3-none-any.whl": body})
    if request.param == "a server that fails":
        answers["/files/toy-1.0-py3-none-any.whl"] = Answer(b"", "text/plain", 500)
    with serve(answers, "other:login" if request.param == "refused login" else login) as served:
        yield served.url.replace("://", f"://{login}@") + "/simple", pin


@pytest.mark.parametrize("debug", [[], ["--debug"]], ids=["plain", "with its traceback"])
@pytest.mark.parametrize("command", ["fetch", "distill"])
def test_who_logs_in_to_an_index_is_never_shown(
    here: Path, index: tuple[str, str], debug: list[str], command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = f"pypi:toy==1.0/toy/rows.tsv#sha256={index[1]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_INDEX_URL", index[0])
        code = main([command, "recipe.yaml", PROMPT, "output=run", f"data.train.source='{spec}'", *debug])
    out, err = capfd.readouterr()
    assert code == 2 and "toy" in err and leaks(here, out + err) == []


@pytest.mark.parametrize(
    "words",
    [
        ["validate", "recipe.yaml", f"train.epochs={SECRETS['HF_TOKEN']}"],
        ["distill", "recipe.yaml", f"student.model=./{SECRETS['WANDB_API_KEY']}"],
        ["distill", "recipe.yaml", PROMPT, f"data.train.source=https://{LOGIN}:{PASSWORD}@host/rows.tsv"],
        ["predict", SECRETS["HF_TOKEN"], "good"],
    ],
)
def test_a_secret_in_the_words_of_a_command_is_not_repeated(
    here: Path, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capfd.readouterr()
    assert "***" in err and leaks(here, out + err) == []


def test_a_fault_of_ours_shows_its_traceback_without_secrets(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object, **__: object) -> None:
        raise RuntimeError(f"GET https://{LOGIN}:{PASSWORD}@host/x failed for {SECRETS['HF_TOKEN']}")

    monkeypatch.setattr("llm_neo.fetch.fetch", fault)
    assert main(["fetch", "recipe.yaml"]) == 1
    out, err = capfd.readouterr()
    assert "Traceback" in err and "https://***@host/x failed for ***" in err and leaks(here, out + err) == []


def test_what_is_redacted_by_hand() -> None:
    environment = {
        "HF_TOKEN": "abcdef123",
        "SHORT_TOKEN": "abc",
        "HOME": "/home/ada",
        "TOKENIZERS_PARALLELISM": "false1",
    }
    text = "abcdef123 abc /home/ada false1 http://u:p@h/x ftp://t@h mail@host a://b/c@d"
    assert redacted(text, environment) == "*** abc /home/ada false1 http://***@h/x ftp://***@h mail@host a://b/c@d"


def test_a_message_cannot_steer_the_terminal() -> None:
    assert str(InputError("a\x1b[2Jb\nc\x07")) == "a\\x1b[2Jb\nc\\x07"
    assert printable("é\u202e\t") == "é\\u202e\\t" and one_line(" a\n b\x00") == "a b\\x00"


EVIL = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](http://evil/x.png)",
    "[click](javascript:alert(1))",
    "`` ` ``",
    "a|b",
    "**bold** _it_ ~~gone~~",
    "http://evil.example",
    "&lt;b&gt;",
    "# heading\n\n---\n- item",
    "```\nimport os",
    "\x1b[2J\u202e",
]
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def shown_text(markup: str) -> str:
    """What a reader sees of HTML."""
    return html.unescape(re.sub(r"<[^>]+>", "", markup)).strip()


@pytest.mark.parametrize("name", EVIL)
def test_a_name_is_shown_as_it_is(name: str) -> None:
    for written in (plain(name), code(name)):
        rendered = MARKDOWN.render(f"A {written} z")
        inner = rendered.removeprefix("<p>").removesuffix("</p>\n").replace("<code>", "").replace("</code>", "")
        assert "<" not in inner, rendered
        assert shown_text(rendered).split() == f"A {one_line(name)} z".split()


@given(st.text(st.sampled_from("ab `*_[]()<>!|~\\&:/#\n-\"'"), max_size=14))
@settings(max_examples=300, deadline=None)
def test_no_name_makes_an_element(name: str) -> None:
    rendered = MARKDOWN.render(f"A {plain(name)} z")
    assert re.findall(r"<[^>]+>", rendered) == ["<p>", "</p>"], rendered
    rendered = MARKDOWN.render(f"A {code(name)} z")
    assert set(re.findall(r"<[^>]+>", rendered)) <= {"<p>", "</p>", "<code>", "</code>"}, rendered


def evil_recipe(name: str) -> Recipe:
    source = {"source": f"/data/{name}.tsv", "text": "text", "label": "label"}
    return Recipe.model_validate(
        {
            "data": {"train": source, "validation": {"fraction_of_train": 0.1}},
            "teacher": {"model": f"/models/{name}"},
            "student": {"model": f"/models/{name}", "lora": {"rank": 4, "alpha": 8, "targets": (name,)}},
            "output": "x",
        }
    )


@pytest.mark.parametrize("name", [name.replace("/", "-") for name in EVIL])
def test_a_model_card_takes_no_markup_and_no_code_from_names(name: str) -> None:
    record = run_record()
    student = record.student.model_copy(update={"model": f"/models/{name}", "base": f"/models/{name}"})
    teacher = record.teacher.model_copy(update={"model": f"/models/{name}"})
    record = record.model_copy(update={"classes": (name, f"{name}2"), "student": student, "teacher": teacher})
    card = model_card(record, evil_recipe(name))
    header, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert "evil_key" not in header and body.count("\n## ") == 4
    rendered = MARKDOWN.render(body)
    allowed = {"h1", "h2", "p", "ul", "li", "code", "pre", "table", "thead", "tbody", "tr", "th", "td"}
    assert set(re.findall(r"</?(\w+)", re.sub(r"<code[^>]*>.*?</code>", "", rendered, flags=re.DOTALL))) <= allowed
    assert "javascript:" not in re.sub(r"<code.*?</code>", "", rendered, flags=re.DOTALL) or "href" not in rendered
    (program,) = re.findall(r"^```python\n(.*?)^```", body, flags=re.MULTILINE | re.DOTALL)
    compile(program, "card", "exec")
    assert "import os" not in [line.strip() for line in program.splitlines()]
    assert body.isprintable() or all(line.isprintable() for line in body.splitlines())


def test_the_summary_of_a_run_cannot_steer_the_terminal() -> None:
    record = run_record(
        classes=["a\x1b[2J", "b\x1b]0;title\x07"],
        notes=["\x1b[31mnote"],
        teacher=scored(760, model="m\x1b[1m", quantization="nf4"),
    )
    console = Console(width=100, record=True, force_terminal=False)
    with console.capture() as captured:
        console.print(summary(record, "runs/x"))
    assert "\x1b" not in captured.get() and "\x07" not in captured.get()


def test_a_label_cannot_steer_the_terminal_or_break_a_line_of_predict(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = (here / "train.tsv").read_text().replace("positive", "pos\x1b[2J")
    (here / "train.tsv").write_text(rows)
    (here / "validation.csv").write_text((here / "validation.csv").read_text().replace("positive", "pos\x1b[2J"))
    assert main(["distill", "recipe.yaml", PROMPT, "output=run"]) == 0
    assert main(["predict", "run", "good \x1b[2J film", "superb great"]) == 0
    out, err = capfd.readouterr()
    assert "\x1b[2J" not in out + err


TRAVERSALS = ["../rows.tsv", "/etc/rows.tsv", "a/../../rows.tsv", "..\\rows.tsv", "./rows.tsv", "a//rows.tsv", ""]


@pytest.mark.parametrize("path", TRAVERSALS)
@pytest.mark.parametrize("nested", [False, True])
def test_a_path_into_a_package_cannot_leave_it(
    here: Path, path: str, nested: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    inside = f"toy/inner.zip!{path}" if nested else path
    before = sorted(here.rglob("*"))
    assert main(["distill", "recipe.yaml", PROMPT, "output=run", f"data.train.source='pypi:toy==1.0/{inside}'"]) == 2
    assert "a path inside an archive is relative" in capfd.readouterr().err or path == ""
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("kind", ["absolute", "above", "link"])
def test_a_package_whose_other_members_reach_out_leaves_nothing_outside(
    here: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = (here / "train.tsv").read_bytes()
    outside = here / "outside.txt"
    name = {"absolute": str(outside), "above": "../../../../../../../../" + str(outside), "link": "toy/link"}[kind]
    links = {name: str(outside)} if kind == "link" else None
    body = tar_of({"toy/rows.tsv": rows} | ({} if links else {name: b"evil"}), links)
    (here / "links").mkdir()
    (here / "links" / "toy-1.0.tar.gz").write_bytes(body)
    pin = hashlib.sha256(body).hexdigest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_FIND_LINKS", str(here / "links"))
        patch.setenv("PIP_NO_INDEX", "1")
        assert main(["fetch", "recipe.yaml", f"data.train.source='pypi:toy==1.0/toy/rows.tsv#sha256={pin}'"]) == 0
        if links:
            outside.write_text("secret\tof another\n")
            words = ["fetch", "recipe.yaml", f"data.train.source='pypi:toy==1.0/toy/link#sha256={pin}'"]
            assert main(words) == 2
            outside.unlink()
    capfd.readouterr()
    assert not outside.exists()


def test_a_shipped_recipe_is_a_name_and_no_path(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("../recipes/quickstart", "/etc/passwd", "quickstart.yaml/../x"):
        assert main(["recipes", "show", name]) == 2
    assert "root:" not in capfd.readouterr().out


def test_overwrite_follows_no_link_out_of_the_run(here: Path) -> None:
    run = run_of(here, "run")
    outside = here / "outside"
    outside.mkdir()
    (outside / "kept.txt").write_text("kept")
    shutil.rmtree(run / "student")
    (run / "student").symlink_to(outside)
    assert main(["distill", "recipe.yaml", PROMPT, "output=run", "--overwrite"]) == 0
    assert [file.name for file in outside.iterdir()] == ["kept.txt"]
    assert not (run / "student").is_symlink() and load_recipe(str(run / "recipe.yaml")).output == "run"
