"""The command line: parse, call, print. A command imports what it needs, so that the others start at once."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llm_neo.errors import InputError
from llm_neo.exits import INTERRUPTED, guarded, usage_error
from llm_neo.printing import one_line, redacted_stderr

if TYPE_CHECKING:
    from llm_neo.progress import Progress
    from llm_neo.recipe import Recipe

_DEFAULT_RECIPE = "quickstart"

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes")

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE|KEY=VALUE",
        help=f"A shipped recipe or a YAML file ({_DEFAULT_RECIPE} if none), then what to change in it.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Such as train.epochs=2.", show_default=False),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from llm_neo import __version__

        print(f"llm-neo {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Distil a large language model into a small one, and measure both."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def distill(
    words: Words = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in output.")] = False,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Continue an interrupted run.", show_default=False)
    ] = None,
) -> None:
    """Distil a teacher into a student and measure both."""
    from rich.console import Console

    if resume is None:
        recipe = _recipe(*_named(words or []))
        from llm_neo.distillation import distill as run_distillation

        record, path = run_distillation(recipe, _progress(), overwrite=overwrite), Path(recipe.output)
    elif words or overwrite:
        raise InputError("--resume takes everything from the run; leave out the recipe, overrides and --overwrite")
    else:
        from llm_neo.distillation import resume as continue_distillation

        record, path = continue_distillation(resume, _progress()), resume
    from llm_neo.report import summary

    Console().print(summary(record, path))


@recipes_app.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List the recipes that come with LLM-Neo, or show one."""
    if context.invoked_subcommand is None:
        from llm_neo.recipe import recipe_names, recipe_text

        names = recipe_names()
        for name in names:
            about = recipe_text(name).partition("\n")[0].removeprefix("# ")
            print(f"{name:<{max(map(len, names))}}  {about}")


@recipes_app.command()
def show(name: Annotated[str, typer.Argument(metavar="NAME", help="A name of the list.")]) -> None:
    """Print a recipe, to read or to begin a file of your own with."""
    from llm_neo.recipe import recipe_text

    print(recipe_text(name), end="")


@app.command()
def validate(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe or a YAML file.")],
    overrides: Overrides = None,
) -> None:
    """Check a recipe and name every problem at once."""
    _recipe(recipe, overrides or [])
    print(f"recipe {recipe} is valid")


@app.command()
def fetch(words: Words = None) -> None:
    """Download and convert what a recipe names, ahead of the run."""
    recipe = _recipe(*_named(words or []))
    from llm_neo.fetch import fetch as fetch_all

    begin = time.perf_counter()
    for item in fetch_all(recipe, _progress()):
        print(f"{item.how:<9}{item.spec}  ({', '.join(item.keys)})")
    print(f"fetched in {time.perf_counter() - begin:.1f} s")


@app.command()
def evaluate(
    run: Run,
    data: Annotated[str, typer.Option(metavar="FILE", help="Labelled rows: .tsv .csv .jsonl .parquet")],
    as_json: AsJson = False,
) -> None:
    """Measure the student of a run on other labelled rows."""
    from llm_neo.inference import evaluate_run

    scores = evaluate_run(run, data, _progress())
    if as_json:
        print(json.dumps(scores, ensure_ascii=False))
    else:
        _print_figures(scores)


@app.command()
def predict(
    run: Run,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="Of a pair: both, a TAB between.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=".txt: a text a line; .tsv .csv .jsonl .parquet: the recipe's columns"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Print label, score and text of each text.

    Without texts and --file they are read from stdin, one a line.
    """
    from llm_neo.inputs import texts_for

    rows = texts_for(run, texts or [], file, sys.stdin.buffer)
    from llm_neo.inference import predict_run

    for row, prediction in zip(rows, predict_run(run, rows, _progress()), strict=True):
        if as_json:
            text = row[0] if len(row) == 1 else row
            line = {"text": text, "label": prediction.label, "scores": prediction.scores}
            print(json.dumps(line, ensure_ascii=False))
        else:
            score = prediction.scores[prediction.label]
            print(one_line(prediction.label), f"{score:.4f}", *map(one_line, row), sep="\t")


@app.command()
def export(
    run: Run,
    to: Annotated[Literal["adapter", "merged"], typer.Option(help="The adapter alone, or one whole model.")],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to; a folder in the run if none.", show_default=False),
    ] = None,
) -> None:
    """Write the student in a form that other tools load."""
    from llm_neo.export import export_run

    print(export_run(run, to, _progress(), output))


def machine_is_shared() -> bool:
    """Whether other programs keep most of the processors busy, by the load of the last minute."""
    if not hasattr(os, "getloadavg"):
        return False
    return os.getloadavg()[0] > 0.75 * (os.cpu_count() or 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; nothing is raised.

    Args:
        arguments: the words after the program's name; None takes those of this process.

    Returns:
        the exit code.
    """
    if machine_is_shared():
        # Read once, when torch loads its thread pool: threads that spin while they wait slow another busy program
        # down fivefold, and it them; on a quiet machine spinning makes a training step a third faster.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Wherever it stands: who adds it to a command that failed adds it at the end.
    end = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:end]
    words = [word for word in words[:end] if word != "--debug"] + words[end:]
    with redacted_stderr():
        return guarded(lambda: _run(words), debug=debug)


def _run(words: list[str]) -> int:
    try:
        code = app(words, prog_name="llm-neo", standalone_mode=False)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        raise usage_error(error.format_message(), context.command_path if context else "llm-neo") from error
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _named(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The recipe that is meant and the overrides; without a name the default."""
    if words and "=" not in words[0]:
        return words[0], words[1:]
    return _DEFAULT_RECIPE, words


def _recipe(name: str, overrides: Sequence[str]) -> "Recipe":
    from llm_neo.recipe import check_environment, load_recipe

    recipe = load_recipe(name, overrides)
    check_environment(recipe, name)
    return recipe


def _progress() -> "Progress":
    from rich.console import Console

    from llm_neo.terminal import RichProgress

    return RichProgress(Console(stderr=True))


def _print_figures(figures: Mapping[str, Any]) -> None:
    for name, value in figures.items():
        shown = [f"{item:.4f}" if isinstance(item, float) else str(item) for item in _items(value)]
        print(f"{name.replace('_', ' '):<20} {' '.join(shown)}")


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]
