"""What the README says is so: its file tree, its commands, its recipes, its Python."""

import ast
import re
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from tiny_runs import material, recorded, run_of

from llm_neo.cli import app
from llm_neo.recipe import load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = sorted(p for p in (ROOT / "src" / "llm_neo").rglob("*.py") if p.name not in ("__init__.py", "__main__.py"))


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", README, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_the_tree_has_every_file_with_its_own_first_line(module: Path) -> None:
    about = (ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or "").partition("\n")[0].rstrip(".")
    assert re.search(rf"^ +{re.escape(module.name)} +{re.escape(about)}$", README, flags=re.MULTILINE)


def test_the_tree_has_no_file_that_is_gone() -> None:
    tree = README.partition("<!-- tree -->")[2]
    assert set(re.findall(r"^ +(\w+\.py) ", tree, flags=re.MULTILINE)) == {module.name for module in MODULES}


def test_every_command_exists() -> None:
    import typer

    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"^ *llm-neo (\w+)", README, flags=re.MULTILINE))
    assert named and named <= known
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE)) <= targets


@pytest.mark.parametrize("block", blocks("yaml"))
def test_every_recipe_is_valid(block: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(block, encoding="utf-8")
    recipe = load_recipe(str(tmp_path / "my.yaml"))
    assert YAML(typ="safe").load(block)["extends"] == "quickstart" and recipe.data.train.text


def test_the_python_gives_the_label_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(material(tmp_path), "run", "student.layers=2")
    texts, logits = recorded(run)
    (code,) = blocks("python")
    code = code.replace("runs/quickstart", str(run)).replace('"a gripping, lovely film"', repr(texts[0][0]))
    names: dict[str, object] = {}
    exec(code, names)
    assert (names["logits"] - logits[:1]).abs().max() < 1e-4  # type: ignore[operator]
    assert capsys.readouterr().out.strip().endswith(["negative", "positive"][int(logits[0].argmax())])
    assert isinstance(names["logits"], torch.Tensor)
