"""Rows of text with ids and labels, from files, pinned package files and the hub; imports no torch."""

from llm_neo.data.load import load_data, read_rows, read_texts
from llm_neo.data.rows import Dataset, Doubts, Row, Split
from llm_neo.data.source import fetch_source

__all__ = ["Dataset", "Doubts", "Row", "Split", "fetch_source", "load_data", "read_rows", "read_texts"]
