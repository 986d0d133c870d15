"""The recipe as a frozen, typed tree; a field's name or description gives its unit. Imports no torch."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from llm_neo.recipe.rows import Data, HeldOut, LabelledSource, ScoreLabel, TextSource
from llm_neo.recipe.section import Name, PartBelowOne, Positive, Rate, Section, Seed, Share

__all__ = [
    "Data",
    "FineTune",
    "HeldOut",
    "LabelledSource",
    "Lora",
    "Loss",
    "Prompt",
    "Recipe",
    "Runtime",
    "ScoreLabel",
    "Section",
    "Student",
    "Teacher",
    "TextSource",
    "Train",
]

MODEL = "hub id[@revision] | local folder or .gguf file | pypi:NAME==VERSION/path of a .gguf file in it"
MICRO_BATCH = "rows of one forward; null = batch_size"


class Lora(Section):
    """Low-rank adaptation (Hu et al. 2022): W + (alpha / rank) B A, without bias."""

    rank: Positive
    alpha: Rate
    dropout: PartBelowOne = 0.0
    targets: Literal["all-linear"] | tuple[Name, ...] = Field(
        default=("q_proj", "k_proj", "v_proj"), description='a list of module names, or "all-linear"'
    )

    def broken_rules(self) -> Iterator[str]:
        """Something is adapted."""
        if not self.targets:
            yield 'targets: names no module; list some, write "all-linear", or set lora to null'


class FineTune(Section):
    """How the teacher is trained on the labelled rows before it teaches."""

    epochs: Positive = 1
    batch_size: Positive = Field(default=16, description="rows of one optimizer step")
    micro_batch_size: Positive | None = Field(default=None, description=MICRO_BATCH)
    learning_rate: Rate = 2.0e-4
    seed: Seed = Field(0, description="apart from train.seed: students of several seeds share one teacher")
    lora: Lora | None = Field(
        default=Lora(rank=16, alpha=32, dropout=0.05, targets="all-linear"),
        description="null = all weights (needs quantization: none)",
    )

    def broken_rules(self) -> Iterator[str]:
        """A forward holds no more rows than its step."""
        yield from _micro_batch_rule(self.micro_batch_size, self.batch_size)


class Prompt(Section):
    """Class probabilities read off the language-model head; nothing is trained."""

    template: Name = Field(description="must hold {text}, or {first} and {second} for a pair")
    label_words: tuple[Name, ...] = Field(min_length=2, description="one per class, in label order")
    calibrate: bool = Field(default=True, description="divide by the probabilities of content-free inputs")

    def broken_rules(self) -> Iterator[str]:
        """The text has its place and the classes have different words."""
        counts = {name: self.template.count(name) for name in ("{text}", "{first}", "{second}")}
        if tuple(counts.values()) not in ((1, 0, 0), (0, 1, 1)):
            yield "template: must hold {text} once, or {first} and {second} once each for a pair"
        if len(set(self.label_words)) != len(self.label_words):
            yield f"label_words: {list(self.label_words)} must differ from one another; change one"


class Teacher(Section):
    """The frozen large model. Without fine_tune, adapter and prompt it is a fine-tuned classifier already."""

    model: Name = Field(description=MODEL)
    quantization: Literal["nf4", "int8", "none"] = "nf4"
    gate: Literal["stop", "warn"] = "stop"
    fine_tune: FineTune | None = None
    adapter: Name | None = Field(default=None, description="a saved adapter of this model, with its head")
    prompt: Prompt | None = None

    def broken_rules(self) -> Iterator[str]:
        """There is one way to a teacher, and it can be trained that way."""
        ways = [way for way in ("fine_tune", "adapter", "prompt") if getattr(self, way) is not None]
        for way in ways[1:]:
            yield f"{way}: cannot stand beside teacher.{ways[0]}; keep one and set the other to null"
        if self.fine_tune and self.fine_tune.lora is None and self.quantization != "none":
            yield (
                f"quantization: {self.quantization} weights cannot be trained and fine_tune.lora is null; "
                "set teacher.quantization=none, or give teacher.fine_tune.lora a rank"
            )


class Student(Section):
    """The small model that learns."""

    model: Name = Field(description=MODEL)
    layers: Positive | tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None,
        description="N for the first N layers, [0, 2, ...] for these counted from 0, or null for all",
    )
    lora: Lora | None = Field(default=Lora(rank=4, alpha=8, dropout=0.1), description="null = all weights")

    def broken_rules(self) -> Iterator[str]:
        """Layers keep their order."""
        if isinstance(self.layers, tuple) and (not self.layers or list(self.layers) != sorted(set(self.layers))):
            yield f"layers: {list(self.layers)} must be a list of ascending, distinct numbers; sort it"


class Loss(Section):
    """loss = w * hard + (1 - w) * T^2 * KL(teacher || student); the weight is the HARD term's."""

    hard_label_weight: Share = 0.5
    temperature: Rate = 2.0


class Train(Section):
    """One optimisation run of the student."""

    epochs: Positive = 1
    batch_size: Positive = Field(default=16, description="rows of one optimizer step")
    micro_batch_size: Positive | None = Field(default=None, description=MICRO_BATCH)
    learning_rate: Rate = 5.0e-5
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False, description="matrices only")
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_fraction: PartBelowOne = Field(default=0.0, description="share of all steps")
    max_gradient_norm: Rate | None = Field(default=1.0, description="null = no clipping")
    seed: Seed = 0
    evaluate_every_steps: Positive | None = Field(default=1000, description="null = at the end only")
    evaluate_rows: Positive | None = Field(
        default=None, description="validation rows of the evaluations before the last; null = all"
    )
    checkpoint_every_steps: Positive | None = Field(default=1000, description="null = off")
    log_every_steps: Positive = 10

    def broken_rules(self) -> Iterator[str]:
        """A forward holds no more rows than its step."""
        yield from _micro_batch_rule(self.micro_batch_size, self.batch_size)


def _micro_batch_rule(micro_batch_size: int | None, batch_size: int) -> Iterator[str]:
    if micro_batch_size is not None and micro_batch_size > batch_size:
        yield (
            f"micro_batch_size: {micro_batch_size} must not exceed batch_size ({batch_size}); "
            "lower it, or set it to null"
        )


class Runtime(Section):
    """Where and how the arithmetic runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    engine: Literal["auto", "plain", "captured"] = "auto"
    memory_limit_gib: Rate | None = Field(default=None, description="device memory in GiB; null = all of it")
    trust_remote_code: bool = False


class Recipe(Section):
    """Everything that shapes a run."""

    task: Literal["sequence-classification"] = "sequence-classification"
    data: Data
    teacher: Teacher
    student: Student
    loss: Loss = Loss()
    train: Train = Train()
    runtime: Runtime = Runtime()
    trackers: tuple[Literal["tensorboard"], ...] = Field(default=(), description="besides metrics.jsonl")
    output: Name = Field(description="the run directory")

    def broken_rules(self) -> Iterator[str]:
        """The teacher fits the data, and every row teaches something."""
        yield from self._broken_prompt_rules()
        if self.data.train.label is None and self.teacher.fine_tune:
            yield (
                "teacher.fine_tune: needs labelled rows; name data.train.label, "
                "or use teacher.prompt or teacher.adapter"
            )
        if self.loss.hard_label_weight == 1.0:
            for key in ("train", "unlabelled"):
                source = getattr(self.data, key)
                if source is not None and getattr(source, "label", None) is None:
                    yield (
                        f"loss.hard_label_weight: 1 learns nothing from data.{key}, which has no labels; "
                        f"lower it, or change data.{key}"
                    )

    def _broken_prompt_rules(self) -> Iterator[str]:
        prompt, classes = self.teacher.prompt, self.data.classes
        pair = isinstance(self.data.train.text, tuple)
        if prompt and ("{first}" in prompt.template) != pair:
            holds, since = ("{first} and {second}", "a pair") if pair else ("{text}", "one column")
            yield f"teacher.prompt.template: must hold {holds}, since data.train.text is {since}"
        if prompt and classes and len(prompt.label_words) != len(classes):
            yield (
                f"teacher.prompt.label_words: has {len(prompt.label_words)} words for {len(classes)} "
                "data.classes; give one per class, in label order"
            )
