"""Bad recipes, data files, models and command lines: each ends with 2 and one clear sentence, and leaves nothing."""

import json
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from assets_builders import zip_of
from bench import (
    RECIPE,
    Bench,
    Material,
    bert,
    classifier,
    cut,
    edit,
    folder,
    gguf_model,
    gpt2,
    headless,
    larger_tokenizer,
    make_rows,
    pickled,
    put,
    remove,
    tensors,
    untied,
    vision,
)
from tiny import tiny_llama

import llm_neo.distillation  # noqa: F401  # heavy: loaded once, before the clock of the first case runs
from llm_neo.cli import main
from llm_neo.progress import SilentProgress

PROMPT = "teacher.prompt={template: '{text} is', label_words: [good, bad]}"
Cases = list[tuple[str, Callable[[Bench], list[str]], str]]
"""What is bad; the words of the command, once all is prepared; what the message must match."""


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """The model, and one run with it."""
    folder = tmp_path_factory.mktemp("material")
    tiny_llama(folder / "llama", layers=3)
    make_rows(folder)
    (folder / "base.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LLM_NEO_CACHE", str(folder / "cache"))
        assert main(["distill", "base.yaml"]) == 0
    return Material(folder / "llama", folder / "run")


@pytest.fixture
def bench(tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch) -> Bench:
    make_rows(tmp_path)
    (tmp_path / "base.yaml").write_text(RECIPE)
    (tmp_path / "llama").symlink_to(material.llama)
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, material, monkeypatch)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("huggingface_hub.constants.HF_HUB_OFFLINE", "datasets.config.HF_HUB_OFFLINE"):
        monkeypatch.setattr(name, True)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


@pytest.fixture
def _everything_is_heard(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """No progress, so that all on stderr but the message is noise; and what libraries log goes where it can be seen."""
    monkeypatch.setattr("llm_neo.terminal.RichProgress", lambda console: SilentProgress())
    for name in list(logging.root.manager.loggerDict):
        for handler in logging.getLogger(name).handlers:
            if type(handler) is logging.StreamHandler:
                monkeypatch.setattr(handler, "stream", sys.stderr)


# --- recipes ---------------------------------------------------------------------------------------------------------

RECIPES: Cases = [
    ("a misspelt key", lambda b: b.changed("train.epoch=2"), r"train\.epoch: unknown key; did you mean train\.epochs"),
    ("a key of another section", lambda b: b.changed("temperature=2.0"), r"temperature: .*did you mean loss\.temp"),
    ("an unknown key", lambda b: b.changed("train.zzz=1"), r"train\.zzz: unknown key; the keys of train are epochs, "),
    ("a word for a number", lambda b: b.changed("train.epochs=two"), r'epochs: "two" .* must be a whole number'),
    ("a quoted number", lambda b: b.changed('train.epochs="2"'), r'epochs: "2" .* whole number; take the quotes off'),
    ("a number for text", lambda b: b.changed("output=7"), r"output: 7 .* must be text .*put it in quotes"),
    ("a fraction of a row", lambda b: b.changed("train.batch_size=1.5"), r"batch_size: 1\.5 .* must be a whole number"),
    ("a negative number", lambda b: b.changed("data.train.limit=-1"), r"limit: -1 .* greater than 0 .*null"),
    ("not a number", lambda b: b.changed("train.learning_rate=.nan"), r"learning_rate: NaN .* a finite number"),
    ("an infinite number", lambda b: b.changed("loss.temperature=.inf"), r"temperature: Infinity .* a finite number"),
    ("a weight above 1", lambda b: b.changed("loss.hard_label_weight=1.5"), r"weight: 1\.5 .* at most 1"),
    ("an unknown choice", lambda b: b.changed("teacher.quantization=nf3"), r"nf3.* one of 'nf4', 'int8' or 'none'"),
    ("a value for a section", lambda b: b.changed("train=3"), r"train: 3 is not a section; write its keys below it: e"),
    ("a missing section", lambda b: b.validate("output: run\n"), r"has 3 problems:.*data: missing.*teacher: missing"),
    ("everything at once", lambda b: b.changed("train.epochs=0", "loss.temp=1"), r"2 problems:\n  loss.*\n  train"),
    ("two ways to a teacher", lambda b: b.changed(PROMPT, "teacher.fine_tune={}"), r"prompt: cannot stand beside teac"),
    (
        "all weights of a 4-bit teacher",
        lambda b: b.changed("teacher={model: llama, quantization: nf4, fine_tune: {lora: null}}"),
        r"nf4 weights cannot be trained .* set teacher\.quantization=none",
    ),
    ("invalid YAML", lambda b: b.validate("data: [1\n"), r"line \d, column \d+: not valid YAML"),
    ("a key twice", lambda b: b.validate("output: a\noutput: b\n"), r"line 2, .*the key output is given twice; keep o"),
    ("a tag", lambda b: b.validate("output: !!python/name:os.system\n"), r"the tag .*system has no meaning.* remove i"),
    ("an empty recipe", lambda b: b.validate(""), r"is empty; begin with `extends: quickstart`"),
    ("a list as recipe", lambda b: b.validate("- data\n"), r'\["data"\] is not a mapping; write keys such as `data:`'),
    ("a recipe in Latin-1", lambda b: b.validate(b"\noutput: caf\xe9\n"), r"line 2: byte 0xe9 is not UTF-8; save it a"),
    (
        "aliases of aliases",
        lambda b: b.validate("a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(bomb(n) for n in "bcdefghi")),
        r"nested too deep or too long for a recipe; shorten it",
    ),
    ("an unknown recipe", lambda b: ["validate", "quikstart"], r"no recipe quikstart: .*did you mean quickstart\?"),
    ("a folder as recipe", lambda b: ["validate", "."], r"\. is a folder, not a recipe; name the YAML file in it"),
    ("an unknown base", lambda b: b.validate("extends: bse.yaml\n"), r"there is no recipe bse\.yaml: .* name one of t"),
    ("a base that is a list", lambda b: b.validate("extends: [base.yaml]\n"), r"extends: .* must be one name or file"),
    ("a recipe that extends itself", lambda b: b.validate("extends: mine.yaml\n"), r"goes in a circle; cut it"),
    ("an override without a value", lambda b: b.changed("student.layers="), r"has no value; write student\.layers=nul"),
    ("an override that is none", lambda b: b.changed("train.epochs"), r"train\.epochs: .* an equals sign and a value"),
    ("an override without a key", lambda b: b.changed("=3"), r'\(no key\): the override "=3" cannot be read'),
    ("an override of half a list", lambda b: b.changed("student.layers=[1,"), r"student\.layers: .*not valid YAML"),
    (
        "pairs against single texts",
        lambda b: b.changed("data.train.text=[first, second]"),
        r"validation\.text: must be a pair like data\.train\.text",
    ),
    ("text as label", lambda b: b.changed("data.train.label=sentence"), r"columns of text and label must differ.*name"),
    ("too few label words", lambda b: b.changed(PROMPT, "data.classes=[a, b, c]"), r"2 words for 3 data\.cl.*one per "),
    (
        "equal label words",
        lambda b: b.changed("teacher.prompt={template: '{text}', label_words: [a, a]}"),
        r"label_words: \['a', 'a'\] must differ from one another; change one",
    ),
    (
        "a template without its text",
        lambda b: b.changed("teacher.prompt={template: 'it is', label_words: [a, b]}"),
        r"template: must hold \{text\} once",
    ),
    (
        "thresholds in the wrong order",
        lambda b: b.changed("data.train.label={column: label, negative_below: 1.0, positive_above: -1.0}"),
        r"negative_below: 1 must be smaller than positive_above \(-1\); lower the first",
    ),
    ("a micro batch above its batch", lambda b: b.changed("train.micro_batch_size=99"), r"99 must not exceed batch_si"),
    ("layers in disorder", lambda b: b.changed("student.layers=[1, 0]"), r"\[1, 0\] must be a list of ascending.* sor"),
    ("no LoRA target", lambda b: b.changed("student.lora.targets=[]"), r"targets: names no module; list some"),
    ("nothing left to learn from", lambda b: b.changed("data.validation={fraction_of_train: 1.0}"), r"smaller than 1"),
    (
        "unlabelled text without a soft loss",
        lambda b: b.changed("loss.hard_label_weight=1.0", "data.unlabelled={source: train.tsv, text: sentence}"),
        r"hard_label_weight: 1 learns nothing from data\.unlabelled.* lower it",
    ),
    (
        "fine-tuning without labels",
        lambda b: b.changed("data.train.label=null", "data.classes=[negative, positive]", "teacher.fine_tune={}"),
        r"fine_tune: needs labelled rows; name data\.train\.label",
    ),
    ("an engine of the future", lambda b: b.changed("runtime.engine=instant"), r"runtime\.engine.*captured"),
]


def bomb(name: str) -> str:
    before = chr(ord(name) - 1)
    return f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"


# --- data files ------------------------------------------------------------------------------------------------------

ROWS = "sentence\tlabel\ngood\tpositive\nbad\tnegative\n"
SCORES = "sentence\tlabel\ngood\t1.5\nbad\t{}\n"
SCORED = "data.train.label={column: label, negative_below: -0.5, positive_above: 0.5}"
PACKAGE = "pypi:toy==1.0/toy/rows.tsv"


def many_classes(bench: Bench) -> list[str]:
    return bench.train("many.tsv", "sentence\tlabel\n" + "".join(f"text {n}\tclass {n}\n" for n in range(1500)))


DATA: Cases = [
    ("no such file", lambda b: b.distil("data.train.source=trian.tsv"), r"train\.source: trian\.tsv does not exist he"),
    ("a folder of rows", lambda b: b.distil("data.train.source=llama"), r"llama is a folder; name one file in it \(\."),
    ("a spreadsheet", lambda b: b.train("rows.xlsx", b"PK"), r"ending in '\.xlsx' are not read; convert it to one of"),
    ("a file of no kind", lambda b: b.train("rows", ROWS), r"'rows' does not say what it is; name a file ending in"),
    ("no such column", lambda b: b.distil("data.train.text=sentense"), r"line 1: .*'sentense'; did you mean 'sentence"),
    ("no label column", lambda b: b.distil("data.train.label=stars"), r"line 1: there is no column 'stars'; The colum"),
    ("a column twice", lambda b: b.train("t.tsv", "label\tlabel\na\tb\n"), r"the column name 'label' occurs twice; re"),
    ("an empty text", lambda b: b.train("t.tsv", ROWS + " \tpositive\n"), r"t\.tsv, line 4: the text ' ' .* is empty;"),
    ("one class only", lambda b: b.train("t.tsv", "sentence\tlabel\na\tx\nb\tx\n"), r"is 'x'; training needs at .* ad"),
    ("no label at all", lambda b: b.train("t.tsv", "sentence\tlabel\na\t\n"), r"no row has a label in column 'label';"),
    ("Latin-1", lambda b: b.train("t.tsv", b"sentence\tlabel\ncaf\xe9\tx\n"), r"line 2: .*caf\\xe9.* is not UTF-8; sa"),
    ("UTF-16", lambda b: b.train("t.tsv", ROWS.encode("utf-16")), r"line 1: .*is not UTF-8; it looks like UTF-16; sav"),
    ("a NUL", lambda b: b.train("t.tsv", ROWS + "a\0b\tpositive\n"), r"line 4: .*holds a NUL character; remove it"),
    ("too few cells", lambda b: b.train("t.tsv", ROWS + "fine\n"), r"line 4: the row 'fine' has 1 cell, .* add the mi"),
    ("too many cells", lambda b: b.train("t.tsv", ROWS + "a\tb\tc\n"), r"line 4: .* has 3 cells, .* replace the tabs"),
    ("a comma too many", lambda b: b.train("t.csv", "sentence,label\na,b,c\n"), r"line 2: .*3 cells.* in double quote"),
    ("a quote too many", lambda b: b.train("t.csv", 'sentence,label\n"a"b,c\n'), r"line 2: .*RFC 4180.* double the qu"),
    ("an empty line", lambda b: b.train("t.tsv", "sentence\tlabel\n\na\tb\n"), r"line 2: the line is empty; delete it"),
    ("an empty file", lambda b: b.train("t.tsv", ""), r"t\.tsv is empty; it must hold at least one row"),
    ("a header alone", lambda b: b.train("t.tsv", "sentence\tlabel\n"), r"a header line but no rows; it must hold at "),
    ("half a JSON line", lambda b: b.train("t.jsonl", '{"sentence": "a"\n'), r"line 1: .*invalid JSON .* one JSON obj"),
    ("a JSON list as a line", lambda b: b.train("t.jsonl", "[1]\n"), r"line 1: \[1\] is not a JSON object; correct or"),
    ("half a JSON list", lambda b: b.train("t.json", '[{"sentence": "a"},\n'), r"t\.json, line \d: invalid JSON .*; i"),
    (
        "JSON without the column",
        lambda b: b.train("t.jsonl", '{"text": "a", "label": 1}\n'),
        r"no column 'sentence'; .*'text'",
    ),
    (
        "a text that is a number",
        lambda b: b.train("t.jsonl", '{"sentence": 1, "label": 1}\n{"sentence": "", "label": 0}'),
        r"text 1 .* must be a string; wr",
    ),
    (
        "damaged Parquet",
        lambda b: b.train("t.parquet", b"PAR1" + b"\0" * 40),
        r"t\.parquet cannot be read as Parquet .*;",
    ),
    (
        "column names for Parquet",
        lambda b: b.train("t.parquet", b"", "data.train.columns=[sentence, label]"),
        r"remove `col",
    ),
    ("a score in words", lambda b: b.train("t.tsv", SCORES.format("poor"), SCORED), r"line 3: the score 'poor' is no "),
    ("a score without bound", lambda b: b.train("t.tsv", SCORES.format("inf"), SCORED), r"line 3: the score 'inf' .*c"),
    (
        "every score between",
        lambda b: b.train("t.tsv", "sentence\tlabel\na\t0.1\nb\t0\n", SCORED),
        r"between.* narrow them",
    ),
    ("a score as label", lambda b: b.train("t.tsv", SCORES.format("-0.5")), r"line 2: the label '1\.5' is a score; gi"),
    ("a class for each row", many_classes, r"1,500 different values, such as 'class 0'; name another column"),
    (
        "an unknown label in validation",
        lambda b: b.validation(ROWS + "so so\tneutral\n"),
        r"v\.tsv, line 4: the label 'neutral' is none of the classes 'negative', 'positive'; correct",
    ),
    (
        "a label outside the given classes",
        lambda b: b.distil("data.classes=[negative, neutral]"),
        r"the label 'positive' is none of the classes 'negative', 'neutral'; correct the row, or list all",
    ),
    (
        "validation without a label",
        lambda b: b.validation(ROWS + "so so\t\n"),
        r"v\.tsv, line 4: the label of 'so so' is missing; rows to measure on need one",
    ),
    (
        "too few rows to hold some out",
        lambda b: b.train("t.tsv", ROWS, "data.validation={fraction_of_train: 0.001}"),
        r"raise it",
    ),
    (
        "a hub data set without a network",
        lambda b: b.distil("data.train.source=own/set/train"),
        r"'own/set'.*name a local",
    ),
    (
        "column names for the hub",
        lambda b: b.distil("data.train={source: own/set/train, columns: [sentence, label]}"),
        r"remove",
    ),
    (
        "a package without a version",
        lambda b: b.distil("data.train.source=pypi:toy/rows.tsv"),
        r"names no exact version; the",
    ),
    ("a package without a pin", lambda b: b.distil(f"data.train.source={PACKAGE}"), r"is not pinned.* add #sha256=HEX"),
    ("half a pin", lambda b: b.distil(f"data.train.source='{PACKAGE}#sha256=12'"), r"#sha256=12, but .* 64 hexadecima"),
    (
        "a package without a network",
        lambda b: b.distil(f"data.train.source='{PACKAGE}#sha256={'0' * 64}'"),
        r"toy==1\.0 could not be fetched .*put the file .* into a folder and set PIP_FIND_LINKS",
    ),
    (
        "a package out of its folder",
        lambda b: b.distil("data.train.source=pypi:toy==1.0/../rows.tsv"),
        r"'\.\./rows\.tsv' in it",
    ),
    ("a package of the wrong bytes", lambda b: wrong_package(b), r"none of the files .* has the pinned sha256 0.*corr"),
    ("nothing to fetch from", lambda b: ["fetch", "base.yaml", f"data.train.source={PACKAGE}"], r"is not pinned"),
]


def wrong_package(bench: Bench) -> list[str]:
    (bench.folder / "wheels").mkdir()
    (bench.folder / "wheels" / "toy-1.0-py3-none-any.whl").write_bytes(zip_of({"toy/rows.tsv": ROWS.encode()}))
    bench.patch.setenv("PIP_FIND_LINKS", str(bench.folder / "wheels"))
    return bench.distil(f"data.train.source='{PACKAGE}#sha256={'0' * 64}'")


# --- models ----------------------------------------------------------------------------------------------------------


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
SAME_TOKEN = "teacher.prompt={template: '{text} is', label_words: [unheard, unseen]}"
CUSTOM = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.Model"}}

MODELS: Cases = [
    ("no such model", lambda b: b.distil("student.model=./lama"), r"student\.model: \./lama does not exist here; corr"),
    ("a name that is nothing", lambda b: b.distil("student.model=lama"), r"'lama' is neither a local folder.* hub id."),
    ("a folder without a model", lambda b: b.model(remove("config.json")), r"changed holds no config\.json, so it is "),
    ("a file that is no model", lambda b: b.distil("student.model=train.tsv"), r"train\.tsv is a file, but a model is"),
    ("pickled weights alone", lambda b: b.model(pickled), r"only pickled weights \(pytorch_model\.bin\).* save_pretra"),
    ("no weights", lambda b: b.model(remove("model.safetensors")), r"changed holds no weights, .* fetch it again"),
    ("half the weights", lambda b: b.model(cut("model.safetensors", 100_000)), r"changed.*model\.safetensors.*fetch i"),
    ("weights of noise", lambda b: b.model(put("model.safetensors", b"\xff" * 64)), r"changed.*model\.safetensors.*fe"),
    ("a shard missing", lambda b: b.model(put("model.safetensors.index.json", SHARDS)), r"1 of its weight files .* fe"),
    ("weights without a header", lambda b: b.model(put("model.safetensors", b"")), r"model\.safetensors is damaged"),
    (
        "a tensor missing",
        lambda b: b.model(tensors(lambda s: s.pop("model.norm.weight"))),
        r"lack 1 tensor.*norm.*download",
    ),
    ("tensors of another shape", lambda b: b.model(edit("config.json", hidden_size=64)), r"changed.*another shape.*do"),
    (
        "an unknown architecture",
        lambda b: b.model(edit("config.json", model_type="nosuch")),
        r"changed.*nosuch.*choose",
    ),
    ("code of its own", lambda b: b.model(edit("config.json", **CUSTOM)), r"changed.*runtime\.trust_remote_code=true"),
    ("a damaged configuration", lambda b: b.model(put("config.json", b"{")), r"changed cannot.*config\.json.* check i"),
    (
        "an encoder",
        lambda b: b.model(bert("BertForSequenceClassification")),
        r"changed is a BertForSequenceClassification.*choose a decoder",
    ),
    (
        "an encoder to be prompted",
        lambda b: b.model(bert("BertForMaskedLM"), PROMPT, who="teacher"),
        r"changed.*choose a decoder",
    ),
    ("a model of images", lambda b: b.model(vision), r"changed reads no text \(it is a vit\); choose a language model"),
    ("no tokenizer", lambda b: b.model(remove(*TOKENIZER_FILES)), r"changed has no tokenizer; put the files of its to"),
    ("a damaged tokenizer", lambda b: b.model(put("tokenizer.json", b"{")), r"tokenizer of changed cannot.*check its "),
    ("a tokenizer of noise", lambda b: b.model(put("tokenizer.json", b'{"a": 1}')), r"tokenizer of changed cannot.*ch"),
    ("layers of GPT-2", lambda b: b.model(gpt2), r"layers of a GPT2ForSequenceClassification cannot be chosen here; s"),
    (
        "a tokenizer without an end",
        lambda b: b.model(edit("tokenizer_config.json", eos_token=None)),
        r"neither a padding nor",
    ),
    ("a tokenizer too large", lambda b: b.model(larger_tokenizer), r"has \d+ tokens but the model only 64 embeddings"),
    (
        "a teacher of other classes",
        lambda b: b.model(classifier("a", "b", "c"), who="teacher"),
        r"classifies into 3 classes \(a, b, c\) but the data has 2 \(negative, positive\); choose",
    ),
    (
        "a teacher of other names",
        lambda b: b.model(classifier("good", "bad"), who="teacher"),
        r"no class named 'negative', its classes are good, bad; name data\.classes",
    ),
    ("more layers than there are", lambda b: b.distil("student.layers=4"), r"4 layers but the model has 3 .*lower it "),
    ("a layer that is not there", lambda b: b.distil("student.layers=[0, 3]"), r"layer 3 but the model has 3 \(0 to 2"),
    ("a LoRA target misspelt", lambda b: b.distil("student.lora.targets=[q_prj]"), r"q_prj matches no .*did you mean "),
    (
        "a LoRA target of the teacher misspelt",
        lambda b: b.distil("teacher.fine_tune={lora: {rank: 2, alpha: 4, targets: [query]}}"),
        r"query matches no linear layer.* it has .*q_proj",
    ),
    ("label words of one token", lambda b: b.distil(SAME_TOKEN), r"'unheard' is the same tokens as another .*choose w"),
    ("a classifier to be prompted", lambda b: b.model(untied, PROMPT, who="teacher"), r"changed lack 1 tensor.*lm_hea"),
    ("no adapter", lambda b: b.distil("teacher.adapter=./gone"), r"teacher\.adapter: \./gone does not exist here; cor"),
    ("a model as adapter", lambda b: b.distil("teacher.adapter=llama"), r"llama holds no adapter_config\.json; give a"),
    ("an adapter as model", lambda b: b.adapter(lambda f: None, "student.model=adapter"), r"holds an adapter, not a m"),
    (
        "an adapter of another base",
        lambda b: b.adapter(lambda f: None, "teacher.model=llama"),
        r"was made for another base.*load",
    ),
    ("an adapter without a head", lambda b: b.adapter(headless), r"adapter has no 'score' head.* modules_to_save"),
    ("half an adapter", lambda b: b.adapter(cut("adapter_model.safetensors", 200)), r"adapter_model\.safetensors is d"),
    ("a damaged adapter", lambda b: b.adapter(put("adapter_config.json", b"[")), r"adapter_config\.json is no valid J"),
    ("an adapter of no kind", lambda b: b.adapter(put("adapter_config.json", b"[1]")), r"is no JSON object; save the "),
    ("no GGUF", gguf_model(b"GGML"), r"tiny\.gguf is not a GGUF file: .*name another"),
    ("half a GGUF", gguf_model(b"GGUF\x03\0\0\0" + b"\xff" * 40), r"tiny\.gguf is damaged or incomplete .*fetch it ag"),
    ("a GGUF without a tensor", gguf_model(None, without="output_norm"), r"tiny\.gguf.*output_norm|tiny\.gguf.*norm"),
    ("a GGUF of another kind", gguf_model(None, architecture="nosuch"), r"cannot read the GGUF file tiny\.gguf.*inste"),
    ("a hub model without a network", lambda b: b.distil("student.model=own/model"), r"own/model is no local.*check t"),
    (
        "a package that is no model",
        lambda b: b.distil(f"student.model='{PACKAGE}#sha256={'0' * 64}'"),
        r"is no model: the file inside the package must be a \.gguf file",
    ),
]
SHARDS = json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}).encode()


# --- command lines ---------------------------------------------------------------------------------------------------


def pairs(bench: Bench) -> str:
    """The folder of a run about pairs, as far as `predict` looks before it loads the student."""
    recipe = RECIPE.replace("text: sentence", "text: [first, second]")
    return folder(bench, "pairs", recipe__yaml=recipe)


def no_gpu(bench: Bench) -> list[str]:
    bench.patch.setattr(torch.cuda, "is_available", lambda: False)
    return bench.distil("runtime.device=cuda")


COMMANDS: Cases = [
    ("no such command", lambda b: ["destil"], r"No such command 'destil'.*see `llm-neo --help`"),
    ("an unknown option", lambda b: ["distill", "--epochs", "2"], r"No such option: --epochs.*see `llm-neo distill --"),
    ("two recipes", lambda b: ["distill", "base.yaml", "other.yaml"], r"other\.yaml: the override .* an equals sign"),
    ("no data to evaluate on", lambda b: ["evaluate", "run"], r"Missing option '--data'; see `llm-neo evaluate --help"),
    ("an unknown form of export", lambda b: ["export", "run", "--to", "torch"], r"'torch' is not one of 'adapter', 'm"),
    ("nothing to resume", lambda b: ["distill", "--resume", "gone"], r"gone holds no run: .* name the folder of an in"),
    ("resume and overrides", lambda b: ["distill", "--resume", "run", "train.epochs=2"], r"--resume takes everything "),
    ("resume a finished run", lambda b: ["distill", "--resume", b.finished()], r"finished is finished; there is nothi"),
    ("a finished run in the way", lambda b: b.distil(f"output={b.finished()}"), r"holds a finished run; choose anothe"),
    (
        "an interrupted run in the way",
        lambda b: b.distil(f"output={b.finished(remove('run.json'))}"),
        r"holds an interrupted run; go on with it by `llm-neo distill --resume finished`",
    ),
    ("files in the way", lambda b: b.distil(f"output={folder(b, 'full', a__txt='a')}"), r"is not empty and holds no r"),
    (
        "no run to overwrite",
        lambda b: [*b.distil(f"output={folder(b, 'full', a__txt='a')}"), "--overwrite"],
        r"full holds a\.txt, which --overwrite does not remove.* move it away",
    ),
    ("a file as output", lambda b: b.distil("output=train.tsv"), r"output train\.tsv is a file; choose a folder"),
    ("an output below a file", lambda b: b.distil("output=train.tsv/run"), r"cannot write train\.tsv/run: .*choose an"),
    ("a GPU where there is none", no_gpu, r"runtime\.device is cuda, but .* sees no CUDA device; set runtime\.device="),
    ("a memory limit without a GPU", lambda b: b.distil("runtime.memory_limit_gib=4.0"), r"limits a GPU's.* set it to"),
    ("evaluate nothing", lambda b: ["evaluate", "gone", "--data", "train.tsv"], r"gone is not a folder; name the outp"),
    (
        "evaluate an interrupted run",
        lambda b: ["evaluate", b.finished(remove("run.json")), "--data", "train.tsv"],
        r"is not a finished run: it has no run\.json; go on with it by `llm-neo distill --resume finished`",
    ),
    (
        "evaluate a damaged run",
        lambda b: ["evaluate", b.finished(cut("run.json", 200)), "--data", "train.tsv"],
        r"run\.json is damaged: .*; run the recipe again",
    ),
    (
        "evaluate a run without its figures",
        lambda b: ["evaluate", b.finished(edit("run.json", student=None)), "--data", "train.tsv"],
        r"run\.json is not as the run wrote it \(its sha256 differs\); restore it or run the recipe again",
    ),
    (
        "evaluate a run of the future",
        lambda b: ["evaluate", b.finished(edit("run.json", schema_version=99)), "--data", "train.tsv"],
        r"newer LLM-Neo \(schema_version 99, .*\); update llm-neo",
    ),
    (
        "evaluate half a student",
        lambda b: ["evaluate", b.finished(remove("student/adapter_model.safetensors")), "--data", "train.tsv"],
        r"student/adapter_model\.safetensors is missing or not as the run wrote it; restore it or distil again",
    ),
    ("evaluate on no file", lambda b: ["evaluate", b.finished(), "--data", "gone.tsv"], r"gone\.tsv is not there"),
    (
        "evaluate on other columns",
        lambda b: ["evaluate", b.finished(), "--data", b.write("t.tsv", "text\tlabel\na\tpositive\n")],
        r"t\.tsv, line 1: there is no column 'sentence'",
    ),
    (
        "evaluate on other classes",
        lambda b: ["evaluate", b.finished(), "--data", b.write("t.tsv", ROWS + "so so\tneutral\n")],
        r"t\.tsv, line 4: the label 'neutral' is none of the classes",
    ),
    ("predict by nothing", lambda b: ["predict", "gone", "good"], r"gone holds no run: .* name the folder of a finish"),
    ("predict an empty text", lambda b: ["predict", b.finished(), "good", " "], r"text 2: ' ' holds an empty .*correc"),
    (
        "predict no text",
        lambda b: ["predict", b.finished(), "--file", b.write("t.txt", "")],
        r"there is no text; give some",
    ),
    (
        "predict words and a file",
        lambda b: ["predict", b.finished(), "a", "--file", "train.tsv"],
        r"exclude one another; give",
    ),
    ("predict no file", lambda b: ["predict", b.finished(), "--file", "gone.txt"], r"--file gone\.txt is not a file; "),
    (
        "predict in Latin-1",
        lambda b: ["predict", b.finished(), "--file", b.write("t.txt", b"caf\xe9\n")],
        r"line 1: .*not UTF-8",
    ),
    ("predict a half of a pair", lambda b: ["predict", pairs(b), "good"], r"text 1: 'good' must be two texts with one"),
    ("predict three of a pair", lambda b: ["predict", pairs(b), "a\tb\tc"], r"text 1: .* must be two texts with one T"),
    (
        "predict pairs of a file",
        lambda b: ["predict", b.finished(), "--file", b.write("t.tsv", "first\tsecond\na\tb\n")],
        r"t\.tsv, line 1: there is no column 'sentence'",
    ),
    ("export nothing", lambda b: ["export", "gone", "--to", "merged"], r"gone is not a folder; name the output of a r"),
    (
        "export over a folder",
        lambda b: ["export", b.finished(), "--to", "merged", "--output", folder(b, "full", a__txt="a")],
        r"full exists already; remove it or name another folder with --output",
    ),
    (
        "export half a run",
        lambda b: ["export", b.finished(remove("predictions.jsonl")), "--to", "merged"],
        r"predictions\.jsonl is missing or not as the run wrote it; restore it or distil again",
    ),
]

ALL = [*RECIPES, *DATA, *MODELS, *COMMANDS]


def files_of(folder: Path) -> dict[str, bytes | None]:
    """Every file with its content, every folder; names relative to `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def is_shown(kind: type[Warning]) -> bool:
    """Whether Python shows warnings of this kind where nobody has asked for others."""
    return not issubclass(kind, DeprecationWarning | PendingDeprecationWarning | ImportWarning | ResourceWarning)


@pytest.mark.parametrize(("prepare", "message"), [case[1:] for case in ALL], ids=[case[0] for case in ALL])
@pytest.mark.usefixtures("_everything_is_heard")
def test_a_bad_input_ends_with_2_and_one_sentence_and_leaves_nothing(
    prepare: Callable[[Bench], list[str]],
    message: str,
    bench: Bench,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    words = prepare(bench)
    before = files_of(bench.folder)
    capfd.readouterr()
    recwarn.clear()
    code = main(words)
    out, err = capfd.readouterr()
    assert (code, out) == (2, ""), err
    start, _, said = err.partition("llm-neo: error: ")
    assert start == "" and said.count("\n") == 1 + said.count("\n  "), err
    assert re.search(message, said, re.DOTALL), said
    assert len(said) < 700
    assert [str(warning.message) for warning in recwarn if is_shown(warning.category)] == []
    # No run.json, so nothing that looks like a finished run; and no other file that stands in the next attempt's way.
    assert files_of(bench.folder) == before


def test_the_table_is_long_and_names_each_case_once() -> None:
    assert len(ALL) >= 60 and len({case[0] for case in ALL}) == len(ALL)
