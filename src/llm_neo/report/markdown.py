"""Names of others inside Markdown and HTML: shown as they are, never read as markup."""

import re

from llm_neo.printing import one_line

_MARKUP = re.compile(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))")
_TICKS = re.compile(r"`+")


def plain(text: str) -> str:
    """The text on one line, so that Markdown shows each of its characters; HTML tags and addresses do nothing."""
    escaped = _MARKUP.sub(r"\\\1", one_line(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("://", r"\://")


def code(text: str) -> str:
    """The text on one line as code, in more backticks than it holds in a row."""
    line = one_line(text)
    fence = "`" * (1 + max(map(len, _TICKS.findall(line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"
