"""The student's README.md, as the Hugging Face hub reads it: what it is, how good, how to load it, its limits."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llm_neo.intervals import retention_sentence
from llm_neo.recipe.tree import HeldOut, Recipe
from llm_neo.report.markdown import code, plain
from llm_neo.report.names import hub_data, hub_model, public_name
from llm_neo.run.record import RunRecord, ScoredModel

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_PACKAGES = ("llm-neo", "torch", "transformers", "peft")


def model_card(record: RunRecord, recipe: Recipe) -> str:
    """The text of `student/README.md`, YAML header included.

    Args:
        record: the run's result.
        recipe: the run's resolved recipe.

    Returns:
        Markdown; it names no path of this machine.
    """
    from huggingface_hub import ModelCardData

    lora = recipe.student.lora is not None
    source = hub_data(recipe.data.train.source)
    header = ModelCardData(
        model_name=_title(record, recipe),
        base_model=hub_model(recipe.student.model),
        library_name="peft" if lora else "transformers",
        pipeline_tag="text-classification",
        tags=["llm-neo", "knowledge-distillation", "text-classification", *(["lora"] if lora else [])],
        datasets=source.name if source else None,
        metrics=["accuracy", "f1", "precision", "recall"],
        eval_results=list(_results(record, recipe)),
    )
    sections = (
        _about(record, recipe),
        _table(record),
        _usage(record, recipe),
        _training(record, recipe),
        _limits(recipe),
    )
    return f"---\n{header.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def _title(record: RunRecord, recipe: Recipe) -> str:
    name = public_name(recipe.student.model).rsplit("/", 1)[-1].removesuffix(".gguf")
    layers = f" ({record.student.layers} layers)" if record.student.layers is not None else ""
    return f"{name}{layers} distilled by LLM-Neo"


def _results(record: RunRecord, recipe: Recipe) -> Iterator["EvalResult"]:
    from huggingface_hub import EvalResult

    spec = _validation_spec(recipe)
    hub = hub_data(spec)
    student = record.student
    for metric in ("accuracy", "f1", "precision", "recall"):
        yield EvalResult(
            task_type="text-classification",
            dataset_type=hub.name if hub else "local",
            dataset_name=public_name(spec),
            dataset_config=hub.config if hub else None,
            dataset_split=hub.split if hub else None,
            metric_type=metric,
            metric_value=round(getattr(student, metric), 4),
        )


def _validation_spec(recipe: Recipe) -> str:
    validation = recipe.data.validation
    return recipe.data.train.source if isinstance(validation, HeldOut) else validation.source


def _about(record: RunRecord, recipe: Recipe) -> str:
    teacher, student = record.teacher, record.student
    quantization = "" if teacher.quantization == "none" else f", quantised to {teacher.quantization}"
    classes = ", ".join(map(code, record.classes))
    return (
        f"# {plain(_title(record, recipe))}\n\n"
        f"A text classifier ({classes}) that learnt from {plain(public_name(teacher.model))}{quantization}.\nOf its "
        f"{student.total_parameters:,} parameters {student.trainable_parameters:,} were trained "
        f"({100 * student.trainable_share:.4f} %)."
    )


def _table(record: RunRecord) -> str:
    teacher, student = record.teacher, record.student
    averaged = f"of {code(record.classes[1])}" if len(record.classes) == 2 else "macro average"
    rows = [
        ("accuracy, 95 % interval", _accuracy(teacher), _accuracy(student)),
        (f"F1 {averaged}", f"{teacher.f1:.4f}", f"{student.f1:.4f}"),
        (f"precision {averaged}", f"{teacher.precision:.4f}", f"{student.precision:.4f}"),
        (f"recall {averaged}", f"{teacher.recall:.4f}", f"{student.recall:.4f}"),
        ("cross-entropy, nats", f"{teacher.loss:.4f}", f"{student.loss:.4f}"),
        (
            "expected calibration error",
            f"{teacher.calibration_error:.4f}",
            f"{student.calibration_error:.4f}",
        ),
        ("same answer as the teacher", "", f"{student.agreement:.4f}"),
    ]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(
        [
            f"## Results on {record.validation_rows} validation rows",
            "",
            "| | teacher | student |",
            "|---|---|---|",
            *lines,
            "",
            retention_sentence(record.retention, record.paired_difference),
            f"Always answering the commonest class gives {record.majority_share:.4f}.",
            "These are the figures of the last training step.",
        ]
    )


def _accuracy(model: ScoredModel) -> str:
    low, high = model.accuracy_interval
    return f"{model.accuracy:.4f} ({low:.4f} to {high:.4f})"


def _usage(record: RunRecord, recipe: Recipe) -> str:
    pair = isinstance(recipe.data.train.text, tuple)
    text = '("a text", "and its second part")' if pair else '"a text of yours"'
    return "\n".join(
        [
            "## Use",
            "",
            "```python",
            *_loading(record, with_adapter=recipe.student.lora is not None),
            "",
            f"texts = [{text}]",
            "inputs = tokenizer(",
            "    texts,",
            "    padding=True,",
            "    truncation=True,",
            f"    max_length={recipe.data.max_length_tokens},",
            '    return_tensors="pt",',
            ")",
            "with torch.no_grad():",
            "    probabilities = model(**inputs).logits.softmax(-1)",
            "for text, row in zip(texts, probabilities):",
            '    print(model.config.id2label[int(row.argmax())], f"{row.max():.3f}", text)',
            "```",
        ]
    )


def _loading(record: RunRecord, *, with_adapter: bool) -> list[str]:
    """Lines of Python that load the student by transformers and peft alone.

    A base that lies elsewhere, and its commit on the hub, are read from the adapter.
    """
    names = dict(enumerate(record.classes))
    elsewhere = with_adapter and record.student.base != "base"
    if elsewhere:
        base = ["adapter.base_model_name_or_path,", "revision=adapter.revision,"]
    else:
        base = ['f"{folder}/base",' if with_adapter else "folder,"]
    return [
        "import torch",
        *([f"from peft import {'PeftConfig, ' if elsewhere else ''}PeftModel"] if with_adapter else []),
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        'folder = "student"  # this folder, or huggingface_hub.snapshot_download("owner/name")',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        *(["adapter = PeftConfig.from_pretrained(folder)", *_whereabouts(record)] if elsewhere else []),
        "model = AutoModelForSequenceClassification.from_pretrained(",
        *(f"    {argument}" for argument in base),
        f"    id2label={names!r},",
        f"    label2id={ {name: index for index, name in names.items()}!r},",
        "    pad_token_id=tokenizer.pad_token_id,",
        "    dtype=torch.float32,",
        ")",
        *(["model = PeftModel.from_pretrained(model, folder)"] if with_adapter else []),
        "model.eval()",
    ]


def _whereabouts(record: RunRecord) -> list[str]:
    """What to do where the base is a folder of the machine that trained; only its name is told."""
    if hub_model(record.student.base):
        return []
    return [
        f"# The base is the folder {public_name(record.student.base)!r} of the machine that trained; elsewhere say",
        '# adapter.base_model_name_or_path = "where it is"',
    ]


def _training(record: RunRecord, recipe: Recipe) -> str:
    train, lora = recipe.train, recipe.student.lora
    if lora is None:
        adapter = "all weights are trained"
    else:
        targets = lora.targets if isinstance(lora.targets, str) else ", ".join(map(plain, lora.targets))
        adapter = f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g} on {targets}"
    weight, temperature = record.loss.hard_label_weight, record.loss.temperature
    loss = f"{weight:g} x cross-entropy with the labels + {1 - weight:g} x T^2 KL(teacher || student)"
    rate = f"learning rate {train.learning_rate:g} ({train.schedule}), weight decay {train.weight_decay:g}"
    versions = record.environment.versions
    packages = ", ".join(f"{name} {versions[name]}" for name in _PACKAGES if name in versions)
    points = (
        f"{record.train_rows} rows of {plain(public_name(recipe.data.train.source))}",
        f"loss: {loss}, T = {temperature:g}",
        f"{adapter}; the classification head is trained",
        f"{train.epochs} {'epoch' if train.epochs == 1 else 'epochs'} of steps of {train.batch_size} rows, AdamW, "
        f"{rate}, seed {train.seed}",
        f"{record.environment.device}, {record.environment.precision}; {packages}",
    )
    return "\n".join(["## Training", "", *(f"- {point}" for point in points)])


def _limits(recipe: Recipe) -> str:
    return "\n".join(
        [
            "## Limits",
            "",
            f"- Measured on {plain(public_name(_validation_spec(recipe)))} alone; expect lower figures "
            "on text of another kind.",
            f"- Texts were stripped of white space at their ends and cut after {recipe.data.max_length_tokens} tokens.",
            "- It knows no answer but its classes, and it inherits what its teacher and its base get wrong.",
            "- One run with one seed; differences within the intervals above mean nothing.",
            "- The licences of the base model, of the teacher and of the data apply.",
        ]
    )
