"""Device and precision choices, seeds, versions."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from llm_neo.errors import InputError
from llm_neo.runtime import (
    bfloat16_in,
    has_bfloat16_units,
    release,
    seed_everything,
    select_device,
    select_precision,
    versions,
)

CPU = torch.device("cpu")
has_cuda = torch.cuda.is_available()


def test_auto_takes_cuda_where_there_is_some() -> None:
    assert select_device("auto").type == ("cuda" if has_cuda else "cpu")
    assert select_device("cpu").type == "cpu"


@pytest.mark.skipif(has_cuda, reason="needs a machine without CUDA")
def test_absent_cuda_is_refused_with_a_remedy() -> None:
    with pytest.raises(InputError, match=r"runtime\.device is cuda, but PyTorch .* set runtime\.device=auto"):
        select_device("cuda")


@pytest.mark.skipif(not has_cuda, reason="needs CUDA")
def test_cuda_multiplies_bfloat16_in_hardware() -> None:
    precision = select_precision("auto", select_device("cuda"))
    assert precision.dtype == torch.bfloat16
    assert precision.reason == "bfloat16: this GPU has units for it"


def test_auto_precision_follows_the_processor() -> None:
    got = select_precision("auto", CPU)
    if has_bfloat16_units(CPU):
        assert (got.dtype, got.reason) == (torch.bfloat16, "bfloat16: this processor has units for it")
    else:
        assert (got.dtype, got.reason) == (torch.float32, "float32: this processor has no bfloat16 units")
    assert not got.slow


def test_auto_precision_on_either_kind_of_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for present, dtype in [(True, torch.bfloat16), (False, torch.float32)]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda p=present: {"avx512_bf16": p}, raising=False)
        assert select_precision("auto", CPU).dtype == dtype


def test_an_explicit_precision_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select_precision("float32", CPU).reason == "float32: the recipe asks for it"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert not select_precision("bfloat16", CPU).slow
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    got = select_precision("bfloat16", CPU)
    assert got.dtype == torch.bfloat16
    assert got.slow
    assert got.reason == (
        "bfloat16: the recipe asks for it, though this processor has no bfloat16 units, so it may be slower"
    )


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"architecture": "aarch64", "bf16": True}, True),
        ({"architecture": "aarch64", "neon": True}, False),
    ],
)
def test_units_as_pytorch_names_them(capabilities: dict[str, object], expected: bool, tmp_path: Path) -> None:
    assert bfloat16_in(capabilities, tmp_path / "absent") is expected


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("model name\t: X\nflags\t\t: fpu avx512f avx512_bf16 amx_tile\n", True),
        ("flags\t\t: fpu avx2\n", False),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu\nbugs\t\t: bf16\n", False),
    ],
)
def test_units_as_the_kernel_names_them(cpuinfo: str, expected: bool, tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(cpuinfo, encoding="utf-8")
    assert bfloat16_in({}, file) is expected


def test_a_processor_that_nothing_describes_has_no_known_units(tmp_path: Path) -> None:
    assert bfloat16_in({}, tmp_path / "absent") is False


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_a_seed_repeats_every_generator(seed: int) -> None:
    draws = []
    for _ in range(2):
        seed_everything(seed)
        draws.append((random.random(), float(np.random.rand()), torch.rand(2).tolist()))
    assert draws[0] == draws[1]


def test_seeds_differ() -> None:
    seed_everything(0)
    first = (random.random(), float(np.random.rand()), torch.rand(1).item())
    seed_everything(1)
    assert all(a != b for a, b in zip(first, (random.random(), np.random.rand(), torch.rand(1).item()), strict=True))


def test_versions_name_software_and_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_user")
    found = versions()
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert found["threads"] == str(torch.get_num_threads())
    assert found["processor"]
    assert ("gpu" in found) is has_cuda
    assert {"python", "platform", "transformers", "peft", "numpy"} <= set(found)
    assert all(isinstance(value, str) and value for value in found.values())
    assert "hf_secret" not in str(found)


def test_a_package_that_is_absent_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_neo.runtime._PACKAGES", ("no-such-package-of-ours",))
    assert versions()["no-such-package-of-ours"] == "not installed"


def test_release_frees_cycles() -> None:
    class Node:
        alive = 0

        def __init__(self) -> None:
            Node.alive += 1
            self.me = self

        def __del__(self) -> None:
            Node.alive -= 1

    Node()
    assert Node.alive == 1
    release(select_device("auto"))
    assert Node.alive == 0
