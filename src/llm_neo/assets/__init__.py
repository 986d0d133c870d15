"""Where models and data come from: local files, the Hugging Face hub, or a file of a package on an index."""

from llm_neo.assets.cache import cache_folder
from llm_neo.assets.resolve import ModelSource, resolve_file, resolve_model

__all__ = ["ModelSource", "cache_folder", "resolve_file", "resolve_model"]
