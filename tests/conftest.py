"""What several tests share."""

import os
import shutil
import signal
from pathlib import Path

if shutil.which("nvidia-smi") is None:
    # Triton reads it when it is imported, which torch may do: without a GPU its kernels run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from tiny import tiny_llama

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell ignores it in its background jobs, and their children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has a cache of its own and no hub."""
    monkeypatch.setenv("LLM_NEO_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random language model of 3 layers; read only."""
    return tiny_llama(tmp_path_factory.mktemp("llama"), layers=3)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development data sets beside the checkout; skips where they are absent."""
    folder = Path(os.environ.get("LLM_NEO_SHARED_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no development data at {folder}; set LLM_NEO_SHARED_DATA")
    return folder
