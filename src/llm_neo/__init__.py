"""LLM-Neo: distil a large language model into a small one by training a few low-rank adapters."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_neo.distillation import distill

    __version__: str

__all__ = ["__version__", "distill"]


def __getattr__(name: str) -> Any:
    """`distill` and `__version__` when they are first asked for, so that `import llm_neo` costs nothing."""
    if name == "__version__":
        return _version()
    if name == "distill":
        from llm_neo.distillation import distill

        # The import has just bound the module to this name, which belongs to the function.
        globals()["distill"] = distill
        return distill
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("llm-neo")
    except PackageNotFoundError:
        return "unknown (not installed)"
