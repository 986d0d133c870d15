"""What a finished run shows: the terminal's summary, the picture, the model card."""

import json
import math
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, TaskType, get_peft_model
from records import ROWS, evaluation, run_record, scored, stage, training_lines
from rich.console import Console
from tiny import tiny_llama
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from llm_neo.errors import InputError
from llm_neo.intervals import PairedDifference
from llm_neo.recipe import Recipe, load_recipe
from llm_neo.report import draw_curves, model_card, summary
from llm_neo.report.curves import smooth
from llm_neo.report.names import hub_data, hub_model, public_name
from llm_neo.run.record import RunRecord


def shown(record: RunRecord, width: int = 110, path: str = "runs/quickstart") -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(summary(record, path))
    return capture.get()


def row_of(text: str, name: str) -> list[str]:
    """The cells of the first table row that begins with `name`."""
    line = next(line for line in text.splitlines() if line.strip().startswith(name))
    return re.split(r"\s{2,}", line.strip())


def student(**changes: Any) -> dict[str, Any]:
    return run_record().student.model_dump() | changes


class TestSummary:
    def test_teacher_beside_student(self) -> None:
        text = shown(run_record())
        assert row_of(text, "accuracy, n = 872")[1:] == ["0.8716", "0.8624"]
        assert row_of(text, "its 95 % interval")[1:] == ["0.8477 to 0.8921", "0.8379 to 0.8837"]
        assert row_of(text, "retention")[1:] == ["0.9895"]
        assert row_of(text, "layers, parameters")[1:] == ["30, 134,517,312", "20, 99,329,216"]
        assert row_of(text, "frozen weights")[1:] == ["nf4", "bfloat16"]
        assert row_of(text, "agreement with the teacher")[1:] == ["0.9323"]
        assert "Trained: 216,192 of 99,329,216 parameters = 0.2177 %." in text
        assert "Always answering the commonest class: 0.5092." in text
        assert "No measurable loss against the teacher: -0.9 points on the same 872 rows" in text

    def test_the_seeds_table_column_for_column(self) -> None:
        text = shown(run_record(evaluations=[evaluation(3000, 815, epoch=0.7126, training_loss=0.3648)]))
        assert row_of(text, "Step") == [
            "Step",
            "Training Loss",
            "Progress (epoch %)",
            "Validation Loss",
            "Accuracy",
            "F1",
            "Precision",
            "Recall",
        ]
        assert row_of(text, "3000") == [
            "3000",
            "0.3648",
            "0.7126",
            "0.3600",
            "0.9346",
            "0.8800",
            "0.8700",
            "0.8900",
        ]

    def test_stages_with_rates_and_memory(self) -> None:
        text = shown(run_record())
        assert row_of(text, "stage") == ["stage", "seconds", "tokens", "tokens/s", "peak host GiB"]
        assert row_of(text, "teacher     116.2") == ["teacher", "116.2", "41,000", "353", "1.50"]
        assert row_of(text, "data") == ["data", "0.8", "1.50"]
        assert row_of(text, "together") == ["together", "225.7"]

    def test_a_device_has_a_column(self) -> None:
        stages = {"train": stage(10.0, 1000, device_bytes=3 * 2**30), "evaluate": stage(0.0, 5)}
        text = shown(run_record(stages=stages))
        assert row_of(text, "train ") == ["train", "10.0", "1,000", "100", "3.00", "1.50"]
        assert row_of(text, "evaluate ") == ["evaluate", "0.0", "5", "0.00", "1.50"]

    @pytest.mark.parametrize("width", [80, 110])
    def test_no_line_is_cut(self, width: int) -> None:
        text = shown(run_record(), width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        assert "Recall" in text
        assert "0.8900" in text

    def test_what_to_type_next(self) -> None:
        text = shown(run_record(), path="runs/my run")
        assert f"The student is in {Path('runs/my run/student')}" in text
        assert "  llm-neo predict 'runs/my run' 'a text of yours'" in text
        assert "  llm-neo evaluate 'runs/my run' --data your-rows.tsv" in text
        assert "  llm-neo export 'runs/my run' --to merged" in text

    @pytest.mark.parametrize(("ratio", "cell"), [(None, "not defined"), (1.02, "1, no loss"), (0.5, "0.5000")])
    def test_retention_never_passes_1(self, ratio: float | None, cell: str) -> None:
        assert row_of(shown(run_record(retention=ratio)), "retention")[1:] == [cell]

    def test_a_real_loss_is_named(self) -> None:
        text = shown(run_record(retention=0.95, paired_difference=PairedDifference(ROWS, -0.05, (-0.07, -0.03))))
        assert "The student keeps 95.0 % of the teacher's accuracy: -5.0 points" in text
        assert "No measurable loss" not in text

    def test_a_teacher_that_failed_its_gate_is_announced(self) -> None:
        gate = {
            "passed": False,
            "rule": "0.50 is not above 0.51.",
            "majority_share": 0.51,
            "fresh_head": True,
        }
        assert "The teacher failed its gate: 0.50 is not above 0.51." in shown(run_record(gate=gate))
        assert "failed its gate" not in shown(run_record())

    def test_many_evaluations_are_cut_to_the_last(self) -> None:
        rows = [evaluation(step, 700) for step in range(1, 31)]
        text = shown(run_record(evaluations=rows))
        assert "10 earlier evaluations are in run.json." in text
        assert len(re.findall(r"^\s*\d+ .*0\.8028", text, flags=re.MULTILINE)) == 20
        assert "earlier evaluations" not in shown(run_record())

    def test_more_classes_are_averaged(self) -> None:
        assert row_of(shown(run_record(classes=["a", "b", "c"])), "F1, macro average")
        assert row_of(shown(run_record()), "F1 of 'positive'")

    def test_brackets_are_no_markup(self) -> None:
        text = shown(run_record(classes=["[neg]", "[bold]pos[/bold]"], notes=["[red]odd[/red]"]))
        assert "F1 of '[bold]pos[/bold]'" in text
        assert "Note: [red]odd[/red]" in text

    def test_an_unquantised_teacher_of_unknown_size(self) -> None:
        text = shown(run_record(teacher=scored(760, model="owner/name", quantization="none")))
        assert row_of(text, "model")[1] == "owner/name"
        assert row_of(text, "frozen weights")[1:] == ["bfloat16", "bfloat16"]
        assert row_of(text, "layers, parameters")[1] == "?"


class TestCurves:
    def draw(self, folder: Path, lines: list[dict[str, Any]], record: RunRecord) -> "np.ndarray[Any, Any]":
        from matplotlib.image import imread

        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        draw_curves(folder / "metrics.jsonl", record, folder / "curves.png")
        return imread(folder / "curves.png")

    def test_a_picture_with_both_halves(self, tmp_path: Path) -> None:
        picture = self.draw(tmp_path, training_lines(), run_record())
        assert picture.shape[:2] == (750, 1650)
        drawn = picture[..., :3].mean(2) < 0.9
        assert drawn[:, :825].any()
        assert drawn[:, 825:].any()

    def test_the_losses_move_the_left_half_alone(self, tmp_path: Path) -> None:
        with_lines = self.draw(tmp_path, training_lines(), run_record())
        teacher_only = [line | {"stage": "teacher"} for line in training_lines()]
        without = self.draw(tmp_path, teacher_only, run_record())
        changed = (with_lines != without).any(2)
        assert changed[:, :800].any()
        assert not changed[:, 850:].any()

    @pytest.mark.parametrize(
        "changes",
        [
            {"evaluations": [evaluation(1, 0)]},
            {"evaluations": [evaluation(5, ROWS) | {"accuracy_interval": None, "rows": None}]},
            {"evaluations": [evaluation(5, 500, validation_loss=0.0)]},
            {"loss": {"hard_label_weight": 1 / 3, "temperature": 0.5}},
            {"majority_share": 0.1},
        ],
    )
    def test_the_smallest_runs_are_drawn(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        self.draw(tmp_path, [], run_record(**changes))
        self.draw(tmp_path, training_lines(1), run_record(**changes))
        gap = training_lines(1)[0] | {"loss": None, "hard_loss": None, "soft_loss": None}
        self.draw(tmp_path, [gap], run_record(**changes))

    def test_a_folder_in_the_way_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "curves.png").mkdir()
        with pytest.raises(InputError, match=r"cannot write .*curves\.png"):
            self.draw(tmp_path, [], run_record())

    def test_smoothing_is_a_centred_mean(self) -> None:
        # 24 points: a twelfth is 2, so one neighbour on each side.
        values = np.arange(24.0) ** 2
        got = smooth(values)
        assert got[5] == pytest.approx((16 + 25 + 36) / 3)
        assert got[0] == pytest.approx((0 + 1) / 2)
        assert got[-1] == pytest.approx((22**2 + 23**2) / 2)

    def test_smoothing_few_points_changes_nothing(self) -> None:
        assert smooth(np.array([3.0, 1.0])).tolist() == [3.0, 1.0]
        assert smooth(np.array([])).tolist() == []

    def test_smoothing_passes_over_gaps(self) -> None:
        values = np.arange(24.0)
        values[5] = math.nan
        assert smooth(values)[5] == pytest.approx((4 + 6) / 2)
        assert np.isnan(smooth(np.full(24, math.nan))).all()


class TestNames:
    @pytest.mark.parametrize(
        ("spec", "name"),
        [
            ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B"),
            ("owner/name@main", "owner/name"),
            ("nyu-mll/glue:sst2/validation", "nyu-mll/glue (sst2), validation"),
            ("owner/data/train", "owner/data, train"),
            ("pypi:llm-x==0.1/llm_x/Small.Q4_1.gguf#sha256=ab", "Small.Q4_1.gguf"),
            ("pypi:x==3.3.2/a/b.tar.gz!c/rows.txt", "rows.txt"),
            ("/home/ada/secret-project/model/", "model"),
            ("~/data/train.tsv", "train.tsv"),
            ("./data/train.tsv", "train.tsv"),
            ("C:\\Users\\ada\\model", "model"),
        ],
    )
    def test_what_others_read(self, spec: str, name: str) -> None:
        assert public_name(spec) == name

    def test_a_folder_of_this_machine_is_not_on_the_hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "owner" / "name" / "train").mkdir(parents=True)
        assert hub_model("owner/name") == "owner/name"
        assert hub_data("owner/name/train") is not None
        monkeypatch.chdir(tmp_path)
        assert hub_model("owner/name") is None
        assert hub_data("owner/name/train") is None


def recipe(name: str = "quickstart", **changes: Any) -> Recipe:
    return Recipe.model_validate(load_recipe(name).model_dump() | changes)


class TestModelCard:
    def test_the_header_says_what_the_hub_asks(self) -> None:
        llama = "NousResearch/Llama-3.2-1B"
        record = run_record(student=student(model=llama, base=llama))
        data = ModelCard(model_card(record, recipe("sst2-llama3"))).data
        assert data.base_model == llama
        assert data.datasets == "nyu-mll/glue"
        assert data.library_name == "peft"
        assert data.pipeline_tag == "text-classification"
        assert "knowledge-distillation" in data.tags
        accuracy = data.eval_results[0]
        assert (accuracy.metric_type, accuracy.metric_value) == ("accuracy", 0.8624)
        assert (accuracy.dataset_type, accuracy.dataset_config, accuracy.dataset_split) == (
            "nyu-mll/glue",
            "sst2",
            "validation",
        )

    def test_a_package_file_is_no_base_on_the_hub(self) -> None:
        data = ModelCard(model_card(run_record(), recipe())).data
        assert data.base_model is None
        assert data.datasets is None
        assert data.eval_results[0].dataset_type == "local"

    def test_figures_and_limits(self) -> None:
        text = model_card(run_record(), recipe())
        assert "| accuracy, 95 % interval | 0.8716 (0.8477 to 0.8921) | 0.8624 (0.8379 to 0.8837) |" in text
        assert "## Results on 872 validation rows" in text
        assert "No measurable loss against the teacher" in text
        assert "cut after 128 tokens" in text
        assert "LoRA of rank 4, alpha 8, dropout 0 on q_proj, k_proj, v_proj" in text
        assert "T = 2" in text
        assert "- 1 epoch of steps of 16 rows" in text

    def test_no_path_of_this_machine_is_shown(self) -> None:
        source = {"source": "/home/ada/secret/train.tsv", "text": "text", "label": "label"}
        private = recipe(
            data={"train": source, "validation": {"fraction_of_train": 0.1}},
            student={
                "model": "/home/ada/secret/Base",
                "lora": {"rank": 4, "alpha": 8, "targets": "all-linear"},
            },
        )
        record = run_record(
            teacher=scored(760, model="/home/ada/secret/Big", quantization="none"),
            student=student(model="/home/ada/secret/Base", base="/home/ada/secret/Base", layers=None),
        )
        text = model_card(record, private)
        assert "/home" not in text and "secret" not in text
        assert "learnt from Big." in text
        assert "# The base is the folder 'Base' of the machine that trained" in text
        assert "on all-linear" in text
        assert "# Base distilled by LLM-Neo" in text

    def test_a_bar_in_a_class_breaks_no_table(self) -> None:
        text = model_card(run_record(classes=["a|b", "c|d"]), recipe())
        assert r"| F1 of `c\|d` |" in text

    def test_more_classes_and_pairs(self) -> None:
        source = {"source": "rows.tsv", "text": ("first", "second"), "label": "label"}
        pairs = recipe(data={"train": source, "validation": {"fraction_of_train": 0.1}})
        text = model_card(run_record(classes=["a", "b", "c"]), pairs)
        assert "| F1 macro average |" in text
        assert 'texts = [("a text", "and its second part")]' in text

    @pytest.mark.parametrize("lora", [True, False])
    def test_its_code_loads_the_student(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lora: bool
    ) -> None:
        names = ["negative", "positive"]
        folder = tmp_path / "student"
        tiny_llama(folder / "base" if lora else folder, classes=names)
        base = AutoModelForSequenceClassification.from_pretrained(folder / "base" if lora else folder)
        tokenizer = AutoTokenizer.from_pretrained(folder / "base" if lora else folder, pad_token="</s>")
        tokenizer.save_pretrained(folder)
        if lora:
            adapted = get_peft_model(base, LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["q_proj"]))
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name or "modules_to_save" in name:
                    torch.nn.init.normal_(parameter)
            adapted.save_pretrained(folder)
            base = adapted
        with torch.no_grad():
            logits = base.eval()(**tokenizer(["a text of yours"], return_tensors="pt")).logits
        shaped = recipe() if lora else recipe(student={"model": "owner/name", "lora": None})
        code = re.search(r"```python\n(.*?)```", model_card(run_record(), shaped), flags=re.DOTALL)
        assert code is not None
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        (tmp_path / "card.py").write_text(code[1], encoding="utf-8")
        runpy.run_path(str(tmp_path / "card.py"))
        winner = int(logits.argmax())
        assert capsys.readouterr().out == (f"{names[winner]} {logits.softmax(-1).max():.3f} a text of yours\n")

    def test_names_are_quoted_as_python_has_them(self) -> None:
        text = model_card(run_record(classes=["it's", 'say "no"']), recipe())
        code = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)
        assert code is not None
        compile(code[1], "card", "exec")

    def test_lines_end_as_markdown_wants(self) -> None:
        text = model_card(run_record(), recipe())
        assert text.startswith("---\nlibrary_name: peft\n")
        assert text.endswith("\n")
        assert "\r" not in text
