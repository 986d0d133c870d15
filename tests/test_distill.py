"""The whole run on tiny random Llamas: a learnable task, every way to a teacher, every file of the run directory."""

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
from tiny import BAD, GOOD, tiny_llama, toy_file

from llm_neo import fine_tuning
from llm_neo.distillation import distill, resume
from llm_neo.errors import InputError, TeacherGateError
from llm_neo.recipe import Recipe, dump_recipe, load_recipe
from llm_neo.run.record import RunRecord, read_run

RECIPE = """
data:
  train: {source: TRAIN, text: sentence, label: label}
  validation: {source: VALIDATION, text: sentence, label: label}
  max_length_tokens: 32
teacher:
  model: TEACHER
  quantization: none
  fine_tune: {epochs: 2, batch_size: 16, learning_rate: 1.0e-2, lora: {rank: 8, alpha: 16, targets: all-linear}}
student:
  model: STUDENT
  layers: 2
  lora: {rank: 4, alpha: 8, dropout: 0.1, targets: [q_proj, k_proj, v_proj]}
train: {epochs: 3, learning_rate: 1.0e-2, evaluate_every_steps: 20,
        evaluate_rows: 50, log_every_steps: 5, checkpoint_every_steps: 30}
runtime: {device: cpu, precision: float32}
output: OUTPUT
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and data of this file's runs."""
    folder = tmp_path_factory.mktemp("material")
    tiny_llama(folder / "llama", layers=3)
    toy_file(folder / "train.tsv", 400, seed=1)
    toy_file(folder / "validation.csv", 100, seed=2)
    return folder


def recipe_of(material: Path, output: Path, *overrides: str) -> Recipe:
    text = RECIPE
    for name, path in {
        "TRAIN": material / "train.tsv",
        "VALIDATION": material / "validation.csv",
        "TEACHER": material / "llama",
        "STUDENT": material / "llama",
        "OUTPUT": output,
    }.items():
        text = text.replace(name, str(path))
    file = output.parent / "recipe.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return load_recipe(str(file), overrides)


class Heard:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.stages: list[str] = []

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def say(self, message: str) -> None:
        self.said.append(message)

    def bar(self, label: str, total: int | None, unit: str) -> Any:
        from llm_neo.progress import SilentProgress

        return SilentProgress().bar(label, total, unit)


@pytest.fixture(scope="module")
def finished(material: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, RunRecord, Path, Heard, Path]:
    """One whole run: recipe, record, directory, what it said, its cache."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_NEO_CACHE", str(folder / "cache"))
        recipe, heard = recipe_of(material, folder / "run"), Heard()
        return recipe, distill(recipe, heard), folder / "run", heard, folder / "cache"


def test_a_student_learns_a_learnable_task_from_its_teacher(finished: Any) -> None:
    _, record, _, heard, _ = finished
    assert record.gate.passed and not record.gate.fresh_head and record.majority_share == 0.5
    assert record.teacher.accuracy > 0.9 and record.student.accuracy > 0.9
    assert record.student.layers == 2 and record.teacher.layers == 3 and record.teacher.way == "fine_tune"
    assert record.retention == record.student.accuracy / record.teacher.accuracy
    # q, k and v of 2 layers, width 128, rank 4: 2 * (4*(128+128) + 2 * 4*(128+64)) and a head of 2 x 128.
    assert record.student.trainable_parameters == 2 * (1024 + 2 * 768) + 256
    assert heard.stages == ["data", "teacher", "targets", "train"]
    assert any("parameters are trained" in line for line in heard.said)


def test_the_run_directory_holds_the_contract(finished: Any) -> None:
    recipe, record, run, _, _ = finished
    assert read_run(run) == record
    assert load_recipe(str(run / "recipe.yaml")) == recipe
    document = json.loads((run / "run.json").read_text())
    assert document["schema_version"] == 1 and document["validation_rows"] == 100
    assert set(document["stages"]) == {"data", "teacher", "targets", "train", "evaluate"}
    for stage in document["stages"].values():
        assert stage["seconds"] > 0 and stage["peak_host_bytes"] > 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = {stage: [line["step"] for line in lines if line["stage"] == stage] for stage in ("teacher", "train")}
    assert steps == {"teacher": list(range(5, 51, 5)), "train": list(range(5, 76, 5))}
    for line in lines:
        expected = 0.5 * line["hard_loss"] + 0.5 * line["soft_loss"] if line["stage"] == "train" else line["hard_loss"]
        assert line["loss"] == pytest.approx(expected, abs=1e-6)
    assert (run / "curves.png").stat().st_size > 10_000
    assert (run / "student" / "README.md").is_file() and (run / "student" / "base" / "config.json").is_file()


def test_evaluations_are_on_a_sample_but_the_last_one_is_on_all(finished: Any) -> None:
    _, record, _, _, _ = finished
    assert [(e.step, e.rows) for e in record.evaluations] == [(20, 50), (40, 50), (60, 50), (75, 100)]
    assert record.evaluations[-1].epoch == 3.0 and record.evaluations[0].epoch == pytest.approx(20 / 25)
    assert record.evaluations[-1].accuracy == record.student.accuracy
    assert any("fixed sample of 50" in note for note in record.notes)


def test_predictions_hold_the_answers_that_the_figures_are_made_of(finished: Any) -> None:
    _, record, run, _, _ = finished
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    for who, figures in (("student", record.student), ("teacher", record.teacher)):
        right = sum(line[f"{who}_logits"].index(max(line[f"{who}_logits"])) == line["label"] for line in lines)
        assert right / len(lines) == pytest.approx(figures.accuracy)


def test_a_second_run_reuses_teacher_and_targets_and_says_so(finished: Any, tmp_path: Path, material: Path) -> None:
    _, record, _, _, cache = finished
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_NEO_CACHE", str(cache))
        heard = Heard()
        again = distill(recipe_of(material, tmp_path / "run"), heard)
        assert any("targets: 500 rows reused" in line for line in heard.said) and "teacher" not in heard.stages
        assert again.teacher == record.teacher and again.student == record.student
        # The same teacher for other texts: fine-tuned once, scored anew.
        heard = Heard()
        other = recipe_of(material, tmp_path / "other", "data.validation.limit=60")
        distill(other, heard)
        assert any(line.startswith("teacher: reused") for line in heard.said) and "targets" in heard.stages


@pytest.mark.parametrize(
    ("change", "reused"),
    [
        ("student.lora.rank=2", True),
        ("loss.temperature=3.0", True),
        ("teacher.fine_tune.micro_batch_size=8", True),
        ("teacher.fine_tune.epochs=1", False),
        ("train.seed=1", True),
        ("teacher.fine_tune.seed=1", False),
        ("data.max_length_tokens=16", False),
        ("data.train.limit=300", False),
    ],
)
def test_what_shapes_the_teacher_decides_whether_it_is_reused(
    finished: Any, tmp_path: Path, material: Path, change: str, reused: bool
) -> None:
    cache = finished[4]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_NEO_CACHE", str(cache))

        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(fine_tuning, "train", stop)
        patch.setattr("llm_neo.distillation.learn", stop)
        heard = Heard()
        with pytest.raises(KeyboardInterrupt):
            distill(recipe_of(material, tmp_path / "run", change), heard)
        assert any("reused" in line for line in heard.said) == reused


def test_the_teacher_is_gone_before_the_student_loads(material: Path, tmp_path: Path) -> None:
    alive: list[weakref.ref[Any]] = []
    load = fine_tuning.load_base_classifier
    seen: list[bool] = []

    def remember(base: Any) -> Any:
        loaded = load(base)
        alive.append(weakref.ref(loaded.model))
        return loaded

    def look(*args: Any, **kwargs: Any) -> Any:
        gc.collect()
        seen.append(alive[0]() is None)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine_tuning, "load_base_classifier", remember)
        patch.setattr("llm_neo.distillation.load_student", look)
        with pytest.raises(KeyboardInterrupt):
            distill(recipe_of(material, tmp_path / "run", "teacher.fine_tune.epochs=1", "teacher.gate=warn"))
    assert seen == [True]


def test_an_interrupted_run_is_no_run_and_resumes_to_the_same_student(
    finished: Any, material: Path, tmp_path: Path
) -> None:
    _, record, run, _, _ = finished
    recipe = recipe_of(material, tmp_path / "run")
    from llm_neo import engine

    step, calls = engine.PlainEngine.step, 0

    def interrupted(self: Any, batches: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in (40, 70):
            raise KeyboardInterrupt
        return step(self, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.PlainEngine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            distill(recipe)
        with pytest.raises(InputError, match="not a finished run"):
            read_run(tmp_path / "run")
        with pytest.raises(InputError, match="--resume"):
            distill(recipe)
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path / "run")
    again = resume(tmp_path / "run")
    assert again.student == record.student and again.teacher == record.teacher
    metrics = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in (r / "metrics.jsonl").open()]
        for r in (run, tmp_path / "run")
    ]
    assert metrics[0] == metrics[1]
    for name in ("adapter_model.safetensors", "base/model.safetensors"):
        assert (run / "student" / name).read_bytes() == (tmp_path / "run" / "student" / name).read_bytes()


def test_a_changed_recipe_is_refused_field_by_field_unless_the_field_cannot_matter(
    finished: Any, material: Path, tmp_path: Path
) -> None:
    run, cache = tmp_path / "run", finished[4]
    recipe = recipe_of(material, run)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def change(*changes: str) -> None:
        (run / "recipe.yaml").write_text(dump_recipe(recipe_of(material, run, *changes)), encoding="utf-8")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_NEO_CACHE", str(cache))
        with pytest.MonkeyPatch.context() as stop:
            stop.setattr("llm_neo.student_stage.Judge.midway", interrupted)
            with pytest.raises(KeyboardInterrupt):
                distill(recipe)
        change("train.learning_rate=0.02", "student.lora.rank=2", "teacher.fine_tune.epochs=9")
        with pytest.raises(InputError) as refused:
            resume(run)
        assert str(refused.value).splitlines()[1:-1] == [
            "  teacher.fine_tune.epochs: was 2, is 9",
            "  student.lora.rank: was 4, is 2",
            "  train.learning_rate: was 0.01, is 0.02",
        ]
        copied = tmp_path / "copied.tsv"
        copied.write_bytes((material / "train.tsv").read_bytes())
        change("train.log_every_steps=25", "train.checkpoint_every_steps=7", f"data.train.source={copied}")
        assert resume(run).student == finished[1].student
        again = recipe_of(material, tmp_path / "again")
        with pytest.MonkeyPatch.context() as stop:
            stop.setattr("llm_neo.student_stage.Judge.midway", interrupted)
            with pytest.raises(KeyboardInterrupt):
                distill(again)
        tiny_llama(tmp_path / "other", layers=3, seed=9)
        (tmp_path / "again" / "recipe.yaml").write_text(
            dump_recipe(recipe_of(material, tmp_path / "again", f"student.model={tmp_path / 'other'}"))
        )
        with pytest.raises(InputError, match=r"files of student\.model: was [0-9a-f]{64}, is [0-9a-f]{64}"):
            resume(tmp_path / "again")


def test_two_runs_of_one_teacher_share_what_the_first_one_scores(material: Path, tmp_path: Path) -> None:
    """The second waits for the first, and then needs no teacher."""
    words = [f"output={tmp_path / name / 'run'}" for name in ("one", "two")]
    recipe = recipe_of(material, tmp_path / "run")
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    environment = os.environ | {"LLM_NEO_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "llm_neo", "distill", str(file)]
    both = [
        subprocess.Popen([*command, word], env=environment, stderr=subprocess.PIPE, text=True, stdout=subprocess.PIPE)
        for word in words
    ]
    told = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sum("reused from an earlier run" in text for text in told) == 1
    predictions = [(tmp_path / name / "run" / "predictions.jsonl").read_bytes() for name in ("one", "two")]
    assert predictions[0] == predictions[1]


def test_a_teacher_without_a_trained_head_stops_the_run_before_it_is_scored(material: Path, tmp_path: Path) -> None:
    with pytest.raises(TeacherGateError, match="no trained classification head"):
        distill(recipe_of(material, tmp_path / "run", "teacher.fine_tune=null"))
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_teacher_no_better_than_the_majority_stops_the_run(material: Path, tmp_path: Path) -> None:
    tiny_llama(tmp_path / "clueless", classes=["negative", "positive"])
    clueless = (f"teacher.model={tmp_path / 'clueless'}", "teacher.fine_tune=null")
    with pytest.raises(TeacherGateError, match="not above 0.5000"):
        distill(recipe_of(material, tmp_path / "run", *clueless))
    heard = Heard()
    let_through = recipe_of(material, tmp_path / "warned", *clueless, "teacher.gate=warn", "train.epochs=1")
    record = distill(let_through, heard)
    assert not record.gate.passed and any("gate FAILED" in line for line in heard.said)


def test_a_prompted_teacher_needs_no_training(material: Path, tmp_path: Path) -> None:
    words = f"[{GOOD[0]}, {BAD[0]}]"
    recipe = recipe_of(
        material,
        tmp_path / "run",
        f"teacher.prompt={{template: '{{text}} it is', label_words: {words}}}",
        "teacher.gate=warn",
        "train.epochs=1",
    )
    record = distill(recipe)
    assert record.teacher.way == "prompt" and record.stages["teacher"].seconds < record.stages["train"].seconds * 10


def test_an_adapter_teacher_answers_as_it_did_when_it_was_trained(
    finished: Any, material: Path, tmp_path: Path
) -> None:
    _, record, _, _, cache = finished
    (saved,) = [folder for folder in (cache / "teachers").iterdir() if (folder / "adapter_config.json").exists()][:1]
    recipe = recipe_of(material, tmp_path / "run", f"teacher.adapter={saved}", "train.epochs=1")
    assert distill(recipe).teacher.accuracy == record.teacher.accuracy


def test_all_weights_of_teacher_and_student_can_learn(material: Path, tmp_path: Path) -> None:
    full = recipe_of(
        material,
        tmp_path / "run",
        "teacher.fine_tune.lora=null",
        "teacher.fine_tune.learning_rate=1e-3",
        "student.lora=null",
        "student.layers=null",
        "train.learning_rate=1e-3",
    )
    record = distill(full)
    assert record.student.trainable_share == 1.0 and record.student.accuracy > 0.9
    heard = Heard()
    again = distill(
        recipe_of(
            material,
            tmp_path / "again",
            "teacher.fine_tune.lora=null",
            "teacher.fine_tune.learning_rate=1e-3",
            "data.validation.limit=60",
            "train.epochs=1",
        ),
        heard,
    )
    assert any(line.startswith("teacher: reused") for line in heard.said) and again.teacher.accuracy > 0.9


def test_unlabelled_text_teaches_through_the_soft_term_alone(material: Path, tmp_path: Path) -> None:
    extra = tmp_path / "extra.txt"
    extra.write_text("text\n" + "\n".join(f"the film is very {word}" for word in GOOD + BAD), encoding="utf-8")
    record = distill(recipe_of(material, tmp_path / "run", f"data.unlabelled={{source: {extra}, text: text}}"))
    assert record.train_rows == 412 and record.student.accuracy > 0.9


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_teacher_learns_and_leaves_its_base_as_it_was(
    material: Path, tmp_path: Path, quantization: str
) -> None:
    pytest.importorskip("bitsandbytes")
    record = distill(recipe_of(material, tmp_path / "run", f"teacher.quantization={quantization}", "train.epochs=1"))
    assert record.teacher.quantization == quantization and record.teacher.accuracy > 0.8
    assert record.teacher.total_parameters == 377_984


def test_tensorboard_files_can_be_read_back(finished: Any, material: Path, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    distill(recipe_of(material, tmp_path / "run", "trackers=[tensorboard]"))
    events = reader.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [(e.step, pytest.approx(e.value, abs=1e-6)) for e in events.Scalars("train/loss")] == [
        (line["step"], line["loss"]) for line in lines if line["stage"] == "train"
    ]


def test_memory_limit_is_refused_where_it_cannot_be_kept(material: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="memory_limit_gib"):
        distill(recipe_of(material, tmp_path / "run", "runtime.memory_limit_gib=4"))
