"""The command line: what it prints, how it ends, and what it does not import."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import llm_neo
from llm_neo.cli import machine_is_shared, main
from llm_neo.recipe import recipe_text

SOURCE = str(Path(llm_neo.__file__).parents[1])


def process(*words: str, folder: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": SOURCE} | variables
    command = [sys.executable, "-m", "llm_neo", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


def test_help_answers_in_under_three_tenths_of_a_second() -> None:
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        ended = process("--help")
        seconds.append(time.perf_counter() - begin)
        assert ended.returncode == 0
    for command in (
        "distill",
        "fetch",
        "recipes",
        "validate",
        "evaluate",
        "predict",
        "export",
        "--debug",
        "--version",
    ):
        assert command in ended.stdout
    assert min(seconds) < 0.3


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr() == (process("--help").stdout, "")


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"llm-neo {llm_neo.__version__}\n"


@pytest.mark.parametrize("words", [["validate", "quickstart"], ["recipes"], ["recipes", "show", "quickstart"]])
def test_recipes_are_looked_at_without_heavy_packages(words: list[str]) -> None:
    program = (
        "import sys\nfrom llm_neo.cli import main\n"
        f"code = main({words})\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'scipy', 'matplotlib'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    environment = os.environ | {"PYTHONPATH": SOURCE}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "quickstart" in ended.stdout


def test_recipes_lists_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["quickstart", "sst2-llama3", "sst2-smollm2"]
    assert lines[1].startswith("sst2-llama3   SST-2 with Meta-Llama-3-8B in 4 bit as the teacher")
    assert main(["recipes", "show", "sst2-llama3"]) == 0
    assert capsys.readouterr().out == recipe_text("sst2-llama3")


def test_a_shown_recipe_is_a_file_to_begin_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes", "show", "quickstart"])
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert main(["validate", str(tmp_path / "mine.yaml"), "train.epochs=2"]) == 0
    assert capsys.readouterr().out == f"recipe {tmp_path / 'mine.yaml'} is valid\n"


def test_validate_looks_at_the_machine_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "quickstart", "student.model=./gone", "data.train.source=./gone.tsv"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        "llm-neo: error: recipe quickstart has 2 problems:\n  student.model: ./gone does not exist here"
    )
    assert "\n  data.train.source: ./gone.tsv does not exist here" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nosuch"], "No such command 'nosuch'; see `llm-neo --help`"),
        (["--nosuch"], "No such option: --nosuch; see `llm-neo --help`"),
        (["validate"], "Missing argument 'RECIPE'; see `llm-neo validate --help`"),
        (["validate", "quickstart", "--json"], "No such option: --json; see `llm-neo validate --help`"),
        (["validate", "quikstart"], "there is no recipe quikstart: "),
        (["validate", "quickstart", "epochs"], "recipe quickstart has 1 problem:\n  epochs: the override"),
        (["recipes", "nosuch"], "No such command 'nosuch'; see `llm-neo recipes --help`"),
        (["recipes", "show"], "Missing argument 'NAME'; see `llm-neo recipes show --help`"),
        (["recipes", "show", "nosuch"], "there is no recipe nosuch: "),
        (["distill", "nosuch"], "there is no recipe nosuch: "),
        (["distill", "epochs=1"], "recipe quickstart has 1 problem:\n  epochs: unknown key"),
        (
            ["distill", "sst2-smollm2", "epochs=1"],
            "recipe sst2-smollm2 has 1 problem:\n  epochs: unknown key",
        ),
        (
            ["distill", "quickstart", "sst2-smollm2"],
            "recipe quickstart has 1 problem:\n  sst2-smollm2: the over",
        ),
        (["distill", "--resume"], "Option '--resume' requires an argument; see `llm-neo "),
        (
            ["distill", "--resume", "runs/x", "quickstart"],
            "--resume takes everything from the run; leave out",
        ),
        (
            ["distill", "--resume", "runs/x", "--overwrite"],
            "--resume takes everything from the run; leave out",
        ),
        (["evaluate", "runs/x"], "Missing option '--data'; see `llm-neo evaluate --help`"),
        (["evaluate"], "Missing argument 'RUN'; see `llm-neo evaluate --help`"),
        (["predict"], "Missing argument 'RUN'; see `llm-neo predict --help`"),
        (["predict", "nowhere", "text"], "nowhere holds no run: it has no recipe.yaml"),
        (
            ["export", "runs/x"],
            "Missing option '--to'. Choose from: adapter, merged; see `llm-neo export --help`",
        ),
        (["export", "runs/x", "--to", "onnx"], "Invalid value for '--to': "),
        (["export", "--to", "merged"], "Missing argument 'RUN'; see `llm-neo export --help`"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_one_message(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"llm-neo: error: {message}")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback_wherever_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--debug", "validate", "nosuch"], ["validate", "nosuch", "--debug"]):
        assert main(words) == 2
        assert "Traceback" in capsys.readouterr().err
    assert main(["validate", "quickstart", "--", "--debug"]) == 2
    assert "the override" in capsys.readouterr().err


class _Signalled(io.BytesIO):
    """Input during which a signal arrives."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__()
        self._number = number

    def read(self, _size: int | None = -1, /) -> bytes:
        signal.raise_signal(self._number)
        return b""


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_a_command_with_its_code(
    number: signal.Signals,
    code: int,
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe_text("quickstart"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(_Signalled(number)))
    assert main(["predict", str(tmp_path)]) == code
    assert capsys.readouterr() == ("", f"llm-neo: {word}\n")


def test_importing_the_package_imports_nothing_else() -> None:
    program = "import sys, llm_neo; sys.exit([name for name in sys.modules if name.startswith('llm_neo.')] or 0)"
    environment = os.environ | {"PYTHONPATH": SOURCE}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_function_of_the_package_stays_the_function() -> None:
    """Importing the module of the same name binds it to the package; the function must win."""
    program = "import llm_neo; first = llm_neo.distill; assert callable(first); assert llm_neo.distill is first"
    environment = os.environ | {"PYTHONPATH": SOURCE}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_package_names_what_it_lacks() -> None:
    with pytest.raises(AttributeError, match="module 'llm_neo' has no attribute 'nosuch'"):
        llm_neo.nosuch  # noqa: B018


RECIPE = """
data:
  train: {source: train.tsv, text: sentence, label: label}
  validation: {source: validation.csv, text: sentence, label: label}
  max_length_tokens: 32
teacher: {model: ./llama, quantization: none, gate: warn, fine_tune: {learning_rate: 1.0e-2}}
student: {model: ./llama, layers: 2}
train: {learning_rate: 1.0e-2}
runtime: {device: cpu, precision: float32}
output: run
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its material and its finished run."""
    from tiny import tiny_llama, toy_file

    folder = tmp_path_factory.mktemp("finished")
    tiny_llama(folder / "llama", layers=3)
    toy_file(folder / "train.tsv", 64, seed=1)
    toy_file(folder / "validation.csv", 40, seed=2)
    (folder / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    variables = {"LLM_NEO_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    ended = process("distill", "mine.yaml", "train.epochs=2", folder=folder, **variables)
    assert ended.returncode == 0, ended.stderr
    assert "\x1b" not in ended.stdout + ended.stderr
    assert "== teacher" in ended.stderr
    assert "student" in ended.stdout
    return folder


def test_distill_leaves_a_finished_run(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    assert json.loads((finished / "run" / "run.json").read_text())["validation_rows"] == 40
    assert "epochs: 2" in (finished / "run" / "recipe.yaml").read_text()
    assert main(["distill", "mine.yaml"]) == 2
    assert "output run holds a finished run" in capsys.readouterr().err
    assert main(["distill", "--resume", "run"]) == 2
    assert "is finished" in capsys.readouterr().err


def test_resume_finishes_a_run_that_lacks_its_last_file(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    shutil.copytree("run", "interrupted")
    (finished / "interrupted" / "run.json").unlink()
    assert main(["distill", "--resume", "interrupted"]) == 0
    assert "student" in capsys.readouterr().out
    assert (finished / "interrupted" / "run.json").is_file()


def test_evaluate_prints_figures_or_json(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    assert main(["evaluate", "run", "--data", "validation.csv", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert main(["evaluate", "run", "--data", "validation.csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"accuracy             {scores['accuracy']:.4f}" in lines
    low, high = scores["accuracy_interval"]
    assert f"accuracy interval    {low:.4f} {high:.4f}" in lines


def test_predict_prints_a_line_for_each_text(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    assert main(["predict", "run", "the plot is good", "a grim film"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[2] for line in lines] == ["the plot is good", "a grim film"]
    (finished / "texts.txt").write_text("the plot is good\na grim film\n")
    assert main(["predict", "run", "--file", "texts.txt", "--json"]) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for (label, score, text), found in zip(lines, objects, strict=True):
        assert (found["text"], found["label"]) == (text, label)
        assert sorted(found["scores"]) == ["negative", "positive"]
        assert f"{max(found['scores'].values()):.4f}" == score


def test_export_prints_where_it_wrote(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    assert main(["export", "run", "--to", "merged", "--output", "whole"]) == 0
    assert capsys.readouterr().out == "whole\n"
    assert (finished / "whole" / "config.json").is_file()


@pytest.mark.parametrize(("load", "shared"), [(0.0, False), (2.9, False), (3.1, True)])
def test_a_machine_is_shared_where_three_quarters_of_it_are_busy(
    monkeypatch: pytest.MonkeyPatch, load: float, shared: bool
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 9.0, 9.0))
    assert machine_is_shared() is shared
