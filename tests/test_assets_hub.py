"""A hub model by way of the hub's own client, against a hub on this machine."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub.constants
import pytest
from assets_builders import Answer, Served, closed_port, serve

from llm_neo.assets.hub import _bar_class, fetch_hub_model
from llm_neo.errors import InputError, ResourceError
from llm_neo.interrupts import Terminated, raised_signals
from llm_neo.progress import Bar, SilentProgress

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{ }",
    "model.safetensors": b"w" * 1000,
    "pytorch_model.bin": b"pickle",
    "modeling_toy.py": b"raise SystemExit",
    "README.md": b"toy",
    "consolidated.safetensors": b"twice",
    "onnx/config.json": b"deep",
}
WANTED = {"config.json", "tokenizer.json", "model.safetensors"}


def hub_of(files: dict[str, bytes], repository: str = "owner/toy") -> dict[str, Answer]:
    """The answers of a hub with one model."""
    about = {
        "id": repository,
        "sha": COMMIT,
        "private": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": [],
    }
    tree = [{"type": "file", "path": name, "size": len(body), "oid": f"{name:0>40}"} for name, body in files.items()]
    answers = {}
    for revision in ("main", "v1", COMMIT):
        answers[f"/api/models/{repository}/revision/{revision}"] = as_json(about)
        answers[f"/api/models/{repository}/tree/{revision}"] = as_json(tree)
    for name, body in files.items():
        headers = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
        answers[f"/{repository}/resolve/{COMMIT}/{name}"] = Answer(body, headers=headers)
    return answers


def as_json(content: object) -> Answer:
    return Answer(json.dumps(content).encode(), "application/json")


def refusal(status: int, code: str) -> Answer:
    return Answer(b'{"error": "no"}', "application/json", status, {"X-Error-Code": code})


@contextmanager
def hub(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Answer]) -> Iterator[Served]:
    with serve(answers) as served:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", served.url)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            served.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield served


@pytest.fixture(autouse=True)
def _online_with_an_empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))


class Watched(SilentProgress):
    def __init__(self) -> None:
        self.bars: list[tuple[str, int | None, str]] = []
        self.counted = 0

    @contextmanager
    def bar(self, label: str, total: int | None, unit: str) -> Iterator[Bar]:
        self.bars.append((label, total, unit))
        yield self

    def advance(self, amount: int = 1, **figures: float) -> None:
        self.counted += amount


def test_only_configuration_tokenizer_and_safetensors_are_fetched(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    progress = Watched()
    with hub(monkeypatch, hub_of(FILES)) as served:
        folder, commit = fetch_hub_model("owner/toy", None, progress)
        assert commit == COMMIT
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == {name: FILES[name] for name in WANTED}
        assert progress.bars == [("Downloading owner/toy", 1005, "B")]
        assert progress.counted == 1005
        served.requests.clear()
        assert fetch_hub_model("owner/toy", "v1", progress) == (folder, COMMIT)
        assert not [request for request in served.requests if request.startswith("GET /owner")]
        assert len(progress.bars) == 1
    assert capfd.readouterr() == ("", "")


def test_a_commit_in_the_cache_needs_no_hub_and_a_branch_falls_back_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with hub(monkeypatch, hub_of(FILES)) as served:
        found = fetch_hub_model("owner/toy", COMMIT, SilentProgress())
        fetch_hub_model("owner/toy", "v1", SilentProgress())
        served.requests.clear()
        assert fetch_hub_model("owner/toy", COMMIT, SilentProgress()) == found
        assert served.requests == []
    # The server is gone.
    assert fetch_hub_model("owner/toy", "v1", SilentProgress()) == found
    with pytest.raises(InputError, match="owner/toy@v2 is no local folder, and the hub could not be reached for it"):
        fetch_hub_model("owner/toy", "v2", SilentProgress())


def test_a_model_without_safetensors_is_refused_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pickled = {name: FILES[name] for name in ("config.json", "pytorch_model.bin")}
    with hub(monkeypatch, hub_of(pickled)) as served:
        with pytest.raises(InputError, match="owner/toy holds no safetensors, and pickled weights are not loaded"):
            fetch_hub_model("owner/toy", None, SilentProgress())
        assert not [request for request in served.requests if request.startswith("GET /owner")]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (refusal(401, "RepoNotFound"), "owner/toy is neither a local folder nor a model on the hub"),
        (refusal(404, "RepoNotFound"), "owner/toy is neither a local folder nor a model on the hub"),
        (
            refusal(403, "GatedRepo"),
            "owner/toy@v1 is gated: accept its licence on the model's page and set HF_TOKEN",
        ),
        (refusal(404, "RevisionNotFound"), "owner/toy@v1 is not there, though owner/toy is; name a branch"),
        (refusal(400, "Strange"), r"the hub could not be reached for it \(BadRequestError: Bad request\)"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch, answer: Answer, message: str) -> None:
    answers = {"/api/models/owner/toy/revision/v1": answer, "/api/models/owner/toy": answer}
    with hub(monkeypatch, answers), pytest.raises(InputError, match=message) as caught:
        fetch_hub_model("owner/toy", "v1", SilentProgress())
    assert "\n" not in str(caught.value)


def test_a_name_that_no_model_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    with hub(monkeypatch, {}), pytest.raises(InputError, match="owner/-toy- is no hub id such as owner/name"):
        fetch_hub_model("owner/-toy-", None, SilentProgress())


def test_a_full_disk_is_a_resource_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(SilentProgress):
        @contextmanager
        def bar(self, label: str, total: int | None, unit: str) -> Iterator[Bar]:
            raise OSError(28, "No space left on device")
            yield

    with (
        hub(monkeypatch, hub_of(FILES)),
        pytest.raises(ResourceError, match="disk is full while fetching owner/toy"),
    ):
        fetch_hub_model("owner/toy", None, Full())


def test_the_users_own_hub_variables_count(tmp_path: Path) -> None:
    code = (
        "from llm_neo.assets import resolve_model\n"
        "from llm_neo.errors import InputError\n"
        "try:\n"
        "    print(resolve_model('owner/toy'))\n"
        "except InputError as error:\n"
        "    print(error)\n"
    )

    def run(**variables: str) -> str:
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("HF_") and not name.lower().endswith("_proxy")
        }
        environment = {**clean, "HF_HOME": str(tmp_path / "home"), **variables}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stderr == ""
        return done.stdout.strip()

    with closed_port() as url:
        message = run(HF_ENDPOINT=url)
    assert message.startswith("owner/toy is no local folder, and the hub could not be reached for it (")
    assert message.endswith("or name a local folder with the model")
    with serve(hub_of(FILES)) as served:
        assert f"commit='{COMMIT}'" in run(HF_ENDPOINT=served.url)
        assert f"commit='{COMMIT}'" in run(HF_ENDPOINT=served.url, HF_HUB_OFFLINE="1")


def test_a_thread_that_downloads_ends_when_a_signal_came() -> None:
    """The exception is raised in the main thread, which waits for the others."""
    counted: list[int] = []

    class Counting:
        def advance(self, amount: int = 1, **figures: float) -> None:
            counted.append(amount)

    bar = _bar_class(Counting())(total=10, unit="B", desc="model.safetensors")
    with raised_signals():
        bar.update(3)
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Terminated):
            bar.update(3)
    assert counted == [3]
