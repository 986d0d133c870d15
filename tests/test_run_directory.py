"""Making, refusing and emptying the folder of a run."""

import os
import shutil
from pathlib import Path

import pytest

from llm_neo.errors import InputError
from llm_neo.run.directory import OWN_NAMES, PREVIOUS, RunDirectory, abandon, discard_previous, prepare, reopen


def old_run(folder: Path, *, finished: bool) -> Path:
    (folder / "student" / "base").mkdir(parents=True)
    (folder / "student" / "adapter_config.json").write_text("{}")
    (folder / "checkpoints").mkdir()
    (folder / "recipe.yaml").write_text("task: x\n")
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / ".run.json.12.tmp").write_text("{")
    if finished:
        (folder / "run.json").write_text("{}")
    return folder


def content(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_contract_of_names(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    named = {
        run.recipe: "recipe.yaml",
        run.run_json: "run.json",
        run.metrics: "metrics.jsonl",
        run.student: "student",
        run.checkpoints: "checkpoints",
        run.curves: "curves.png",
        run.report: "report.html",
        run.predictions: "predictions.jsonl",
        run.tensorboard: "tensorboard",
    }
    assert all(path == tmp_path / name for path, name in named.items())
    assert set(named.values()) <= OWN_NAMES


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    run = prepare(tmp_path / "a" / "b")
    assert run.path.is_dir()
    assert content(run.path) == []


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    assert prepare(str(tmp_path)) == RunDirectory(tmp_path)
    assert prepare(tmp_path, overwrite=True) == RunDirectory(tmp_path)


def test_the_users_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert prepare("~/runs/x").path == tmp_path / "runs" / "x"


@pytest.mark.parametrize(
    ("finished", "message"),
    [
        (True, r"holds a finished run; choose another output, or replace it with --overwrite .*--resume"),
        (False, r"holds an interrupted run; go on with it by `llm-neo distill --resume .*--overwrite"),
    ],
)
def test_a_run_is_not_written_over_by_chance(tmp_path: Path, finished: bool, message: str) -> None:
    before = content(old_run(tmp_path / "run", finished=finished))
    with pytest.raises(InputError, match=message):
        prepare(tmp_path / "run")
    assert content(tmp_path / "run") == before


@pytest.mark.parametrize("finished", [True, False])
def test_overwrite_empties_a_run(tmp_path: Path, finished: bool) -> None:
    before = content(old_run(tmp_path / "run", finished=finished))
    run = prepare(tmp_path / "run", overwrite=True)
    assert [path.name for path in run.path.iterdir()] == [PREVIOUS] and content(run.path / PREVIOUS) == before
    discard_previous(run)
    assert content(run.path) == []


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_that_could_not_be_replaced_is_there_again(tmp_path: Path, finished: bool) -> None:
    before = content(old_run(tmp_path / "run", finished=finished))
    for _ in range(2):
        run = prepare(tmp_path / "run", overwrite=True)
        run.recipe.write_text("{}")
        abandon(run)
        assert content(run.path) == before


def test_attempts_that_were_killed_do_not_replace_a_run(tmp_path: Path) -> None:
    before = content(old_run(tmp_path / "run", finished=True))
    for _ in range(3):
        run = prepare(tmp_path / "run", overwrite=True)
        assert content(run.path / PREVIOUS) == before
        run.recipe.write_text("{}")
        run.checkpoints.mkdir()
    with pytest.raises(InputError, match="holds an interrupted run"):
        prepare(tmp_path / "run")
    shutil.rmtree(run.checkpoints)
    abandon(run)
    assert content(run.path) == before


def test_a_run_that_was_set_aside_before_its_successor_began_is_there_again(tmp_path: Path) -> None:
    before = content(old_run(tmp_path / "run", finished=True))
    prepare(tmp_path / "run", overwrite=True)
    with pytest.raises(InputError, match="holds a finished run"):
        prepare(tmp_path / "run")
    assert content(tmp_path / "run") == before


def test_overwrite_follows_no_link_out_of_the_run(tmp_path: Path) -> None:
    run = old_run(tmp_path / "run", finished=True)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("x")
    (run / "tensorboard").symlink_to(precious, target_is_directory=True)
    discard_previous(prepare(run, overwrite=True))
    assert content(precious) == ["thesis.txt"]
    assert content(run) == []


def test_overwrite_spares_what_is_no_part_of_a_run(tmp_path: Path) -> None:
    run = old_run(tmp_path / "run", finished=True)
    (run / "notes.txt").write_text("mine")
    before = content(run)
    with pytest.raises(InputError, match=r"holds notes\.txt, which --overwrite does not remove, since that is no part"):
        prepare(run, overwrite=True)
    assert content(run) == before


def test_overwrite_spares_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    with pytest.raises(
        InputError, match=r"holds student, which --overwrite does not remove, since without recipe\.yaml"
    ):
        prepare(tmp_path, overwrite=True)
    assert content(tmp_path) == ["student"]


def test_a_folder_of_other_things_is_refused_and_listed(tmp_path: Path) -> None:
    for name in "abcde":
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"holds no run \(a, b, c and 2 more\); choose another output"):
        prepare(tmp_path)


@pytest.mark.parametrize("moves", range(7))
def test_an_interrupted_overwrite_leaves_no_finished_run_and_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    run, rename, done = old_run(tmp_path / "run", finished=True), Path.rename, []
    before = content(run)

    def killed(path: Path, target: Path) -> Path:
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(path)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(run, overwrite=True)
    assert (run / "run.json").exists() == (moves == 0)
    with pytest.raises(InputError, match="holds a finished run"):
        prepare(run)
    assert content(run) == before


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(InputError, match=r"output .*out is a file; choose a folder"):
        prepare(tmp_path / "out")
    with pytest.raises(InputError, match=r"cannot write .*deep: Not a directory"):
        prepare(tmp_path / "out" / "deep")


@pytest.mark.parametrize(("name", "message"), [("x" * 300, "File name too long"), ("a\0b", "holds a zero byte")])
def test_a_name_that_cannot_be_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(f"{tmp_path}/{name}")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"cannot write .*: Permission denied"):
        prepare(tmp_path / "run")
    with pytest.raises(InputError, match=r"cannot write .*: Permission denied"):
        prepare(tmp_path)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write")
def test_a_folder_that_nobody_can_write() -> None:
    with pytest.raises(InputError, match=r"cannot write /proc/a-run: "):
        prepare("/proc/a-run")


def test_an_interrupted_run_is_reopened(tmp_path: Path) -> None:
    run = old_run(tmp_path / "run", finished=False)
    assert reopen(run) == RunDirectory(run)


def test_nothing_else_is_reopened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is finished; there is nothing to resume"):
        reopen(old_run(tmp_path / "run", finished=True))
    with pytest.raises(InputError, match=r"holds no run: it has no recipe\.yaml"):
        reopen(tmp_path / "absent")


def test_a_run_that_computed_nothing_leaves_nothing(tmp_path: Path) -> None:
    run = prepare(tmp_path / "run")
    run.recipe.write_text("output: run\n")
    run.metrics.touch()
    abandon(run)
    assert not run.path.exists()
    abandon(run)


def test_a_run_that_computed_something_stays(tmp_path: Path) -> None:
    for name, content in (("metrics.jsonl", "{}\n"), ("notes.txt", ""), ("run.json", "{}")):
        run = prepare(tmp_path / name)
        run.recipe.write_text("output: run\n")
        (run.path / name).write_text(content)
        abandon(run)
        assert sorted(entry.name for entry in run.path.iterdir()) == sorted(["recipe.yaml", name])


def test_what_was_killed_while_it_wrote_its_first_file_can_begin_again(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".recipe.yaml.0f3a.tmp").write_text("half")
    assert list(prepare(tmp_path / "run").path.iterdir()) == []


def test_resuming_removes_what_a_killed_run_was_writing(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("x")
    (tmp_path / ".student.0f3a.tmp").mkdir()
    (tmp_path / ".student.0f3a.tmp" / "a").write_text("half")
    assert [entry.name for entry in reopen(tmp_path).path.iterdir()] == ["recipe.yaml"]
