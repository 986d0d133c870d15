"""What a recipe says about a model or file becomes a path and a fingerprint, or one clear sentence."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from assets_builders import sha256_of, tiny_gguf, zip_of

from llm_neo.assets import ModelSource, resolve_file, resolve_model
from llm_neo.assets import resolve as resolve_module
from llm_neo.assets.cache import cache_folder
from llm_neo.errors import InputError
from llm_neo.progress import Progress


def model_folder(folder: Path, **files: bytes) -> Path:
    """A folder that looks like a model; `__` in a name stands for a dot."""
    folder.mkdir()
    for name, content in {"config__json": b"{}", "model__safetensors": b"weights", **files}.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The spec, with a gap for the file's name, of a package in a folder here that holds a GGUF and a text."""
    tiny_gguf(tmp_path / "tiny.gguf")
    wheel = zip_of({"toy/tiny.gguf": (tmp_path / "tiny.gguf").read_bytes(), "toy/rows.txt": b"rows"})
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "toy-1.0-py3-none-any.whl").write_bytes(wheel)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return f"pypi:toy==1.0/toy/{{}}#sha256={sha256_of(wheel)}"


class TestFile:
    def test_a_local_file_is_itself(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "rows.tsv").write_text("x")
        assert resolve_file(str(tmp_path / "rows.tsv")) == tmp_path / "rows.tsv"
        monkeypatch.setenv("HOME", str(tmp_path))
        assert resolve_file("~/rows.tsv") == tmp_path / "rows.tsv"
        monkeypatch.chdir(tmp_path)
        assert resolve_file("rows.tsv") == Path("rows.tsv")

    def test_a_file_in_a_package(self, own_package: str) -> None:
        assert resolve_file(own_package.format("rows.txt")).read_bytes() == b"rows"

    def test_what_is_not_there_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "train.tsv").write_text("x")
        for spec, message in {
            f"{tmp_path}/trian.tsv": f"the file {tmp_path}/trian.tsv is not there; did you mean {tmp_path}/train.tsv?",
            f"{tmp_path}/q": f"the file {tmp_path}/q is not there; look into {tmp_path}",
            f"{tmp_path}/no/q": f"the file {tmp_path}/no/q is not there; neither is the folder {tmp_path}/no",
            str(tmp_path): f"{tmp_path} is a folder, but a file is wanted; name a file in it",
            "": "the name of a model or file is empty; name a path, a package file or a hub id",
        }.items():
            with pytest.raises(InputError) as caught:
                resolve_file(spec)
            assert str(caught.value) == message
        for spec in ("~no-such-user-here/x", "x" * 5000):
            with pytest.raises(InputError, match="cannot be looked for"):
                resolve_file(spec)


class TestModel:
    def test_a_local_folder_is_itself(self, tmp_path: Path) -> None:
        folder = model_folder(tmp_path / "m")
        expected = hashlib.sha256(
            b"".join(
                f"{name}\0{sha256_of(content)}\n".encode()
                for name, content in (("config.json", b"{}"), ("model.safetensors", b"weights"))
            )
        ).hexdigest()
        assert resolve_model(str(folder)) == ModelSource(str(folder), folder, expected, converted=False)

    def test_the_fingerprint_follows_what_shapes_the_model_and_nothing_else(self, tmp_path: Path) -> None:
        first = resolve_model(str(model_folder(tmp_path / "a"))).fingerprint
        same = model_folder(tmp_path / "b", README__md=b"toy", training_args__bin=b"x")
        (same / "onnx").mkdir()
        assert resolve_model(str(same)).fingerprint == first
        others = [
            model_folder(tmp_path / "c", config__json=b"{ }"),
            model_folder(tmp_path / "d", model__safetensors=b"Weights"),
            model_folder(tmp_path / "e", tokenizer__json=b""),
            model_folder(tmp_path / "f", tokenizer__model=b""),
            model_folder(tmp_path / "g", chat_template__jinja=b""),
            model_folder(tmp_path / "h", merges__txt=b""),
        ]
        assert len({first, *(resolve_model(str(folder)).fingerprint for folder in others)}) == 7

    def test_a_file_is_hashed_once_and_again_when_it_changes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, hashed = model_folder(tmp_path / "m"), []
        real = resolve_module.file_sha256
        monkeypatch.setattr(resolve_module, "file_sha256", lambda path: hashed.append(path.name) or real(path))
        first = resolve_model(str(folder)).fingerprint
        assert resolve_model(str(folder)).fingerprint == first
        assert sorted(hashed) == ["config.json", "model.safetensors"]
        (folder / "config.json").write_text("{  }")
        assert resolve_model(str(folder)).fingerprint != first
        assert sorted(hashed) == ["config.json", "config.json", "model.safetensors"]

    def test_gguf_files_are_converted_from_a_path_and_from_a_package(self, tmp_path: Path, own_package: str) -> None:
        spec = str(tmp_path / "tiny.gguf")
        source = resolve_model(spec)
        assert (source.spec, source.converted, source.hub_id) == (spec, True, None)
        assert source.folder.is_relative_to(cache_folder())
        packaged = resolve_model(own_package.format("tiny.gguf"))
        assert (packaged.folder, packaged.fingerprint) == (source.folder, source.fingerprint)
        # The same files elsewhere are the same model.
        shutil.copytree(source.folder, tmp_path / "copy")
        assert resolve_model(str(tmp_path / "copy")).fingerprint == source.fingerprint
        with pytest.raises(InputError, match=r"rows.txt#.* is no model: the file inside the package must be a .gguf"):
            resolve_model(own_package.format("rows.txt"))

    def test_a_hub_model_is_known_by_its_id_and_commit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = model_folder(tmp_path / "snapshot")

        def fetch(repository: str, revision: str | None, progress: Progress) -> tuple[Path, str]:
            return folder, f"commit-of-{revision}"

        monkeypatch.setattr(resolve_module, "fetch_hub_model", fetch)
        assert resolve_model("own.er/to_y-1@refs/pr/1") == ModelSource(
            spec="own.er/to_y-1@refs/pr/1",
            folder=folder,
            fingerprint=sha256_of(b"own.er/to_y-1\ncommit-of-refs/pr/1"),
            converted=False,
            hub_id="own.er/to_y-1",
            commit="commit-of-refs/pr/1",
        )
        assert resolve_model("owner/toy").fingerprint == sha256_of(b"owner/toy\ncommit-of-None")

    def test_a_folder_here_wins_over_a_hub_id(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "owner").mkdir()
        model_folder(tmp_path / "owner" / "toy")
        monkeypatch.chdir(tmp_path)
        assert resolve_model("owner/toy").folder == Path("owner/toy")
        with pytest.raises(InputError, match="owner/tyo is not there; did you mean owner/toy"):
            resolve_model("owner/tyo")

    @pytest.mark.parametrize(
        "spec",
        ["./m", "/no/m", "~/no-such-model", "a/b/c", "..", "models\\m", "tiny.gguf", "owner/tiny.GGUF"],
    )
    def test_what_looks_like_a_path_is_never_asked_of_the_hub(
        self, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        if spec == "..":
            with pytest.raises(InputError, match=r"holds no config.json"):
                resolve_model(spec)
        else:
            with pytest.raises(InputError, match=r"the model folder or file .* is not there"):
                resolve_model(spec)

    @pytest.mark.parametrize("spec", ["gpt2", "owner/to y", "owner/toy@", "@v1", "https:x"])
    def test_what_is_nothing_at_all_is_said(self, spec: str) -> None:
        with pytest.raises(InputError, match=r"is neither a local folder, nor a .gguf file, nor a hub id owner/name"):
            resolve_model(spec)


class TestFolder:
    def refusal(self, path: Path) -> str:
        with pytest.raises(InputError) as caught:
            resolve_model(str(path))
        return str(caught.value)

    def test_a_file_that_is_no_model(self, tmp_path: Path) -> None:
        (tmp_path / "m.safetensors").write_text("x")
        assert "is a file, but a model is a folder with config.json" in self.refusal(tmp_path / "m.safetensors")

    def test_pickled_weights_are_refused(self, tmp_path: Path) -> None:
        folder = model_folder(tmp_path / "m", pytorch_model__bin=b"x", b__pt=b"x")
        assert resolve_model(str(folder)).folder == folder
        (folder / "model.safetensors").unlink()
        message = self.refusal(folder)
        assert "holds only pickled weights (b.pt, pytorch_model.bin)" in message
        assert "save it again with save_pretrained" in message

    def test_no_weights_no_configuration_or_an_adapter(self, tmp_path: Path) -> None:
        folder = model_folder(tmp_path / "m")
        (folder / "model.safetensors").unlink()
        assert "holds no weights, but a model needs *.safetensors" in self.refusal(folder)
        (folder / "config.json").unlink()
        assert "holds no config.json" in self.refusal(folder)
        (folder / "adapter_config.json").write_text("{}")
        assert "holds an adapter, not a model; name its base as the model" in self.refusal(folder)

    def test_every_shard_must_be_there(self, tmp_path: Path) -> None:
        index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}}
        folder = model_folder(tmp_path / "m", model__safetensors__index__json=json.dumps(index).encode())
        assert "is incomplete: 2 of its weight files are not there, such as model-1.safetensors" in self.refusal(folder)
        for shard in (1, 2):
            (folder / f"model-{shard}.safetensors").write_text("x")
        assert resolve_model(str(folder)).folder == folder
        (folder / "model.safetensors.index.json").write_text("{")
        assert "model.safetensors.index.json is damaged (JSONDecodeError" in self.refusal(folder)

    def test_a_file_that_cannot_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = model_folder(tmp_path / "m")

        def refuse(path: Path) -> str:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(resolve_module, "file_sha256", refuse)
        assert f"{folder}/config.json cannot be read (Permission denied)" in self.refusal(folder)


def test_importing_loads_no_heavy_package() -> None:
    code = (
        "import sys, llm_neo.assets; print(sorted({'torch', 'transformers', 'gguf', 'huggingface_hub', 'unearth',"
        " 'httpx2', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
