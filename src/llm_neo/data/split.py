"""Which rows go where: by a hash of the text alone, so that neither order nor limits change the answer."""

import hashlib
import heapq
from collections.abc import Sequence

from llm_neo.data.rows import Row


def text_key(text: Sequence[str]) -> str:
    """What makes two texts (or pairs) the same: letter case and the kind of white space do not count."""
    return "\n".join([" ".join(part.casefold().split()) for part in text])


def hold_out(rows: Sequence[Row], fraction: float) -> tuple[list[Row], list[Row]]:
    """Rows to learn from and rows held out, without a text in both.

    A text is held out when its hash, as a number in [0, 1), is below `fraction`. So the share is only about
    `fraction`, but a text stays on its side when other rows are added, removed or reordered. Rows without a
    label are never held out; those whose text is held out with a labelled row are in neither list.

    Args:
        fraction: share of the distinct texts, 0 < fraction < 1.

    Returns:
        The rows to learn from and the rows held out, each in the order of `rows`.
    """
    keys = [text_key(row.text) for row in rows]
    threshold = round(fraction * 2**64)
    held = {
        key
        for key, row in zip(keys, rows, strict=True)
        if row.label is not None and _number(key, b"hold out") < threshold
    }
    learn = [row for key, row in zip(keys, rows, strict=True) if key not in held]
    return learn, [row for key, row in zip(keys, rows, strict=True) if key in held and row.label is not None]


def sample(rows: Sequence[Row], limit: int | None) -> list[Row]:
    """A pseudo-random sample of `limit` rows, in the order of `rows`; all if `limit` is None or larger.

    The rows whose text has the smallest hashes are taken, not the first ones, since those of a file sorted by
    label are of one class. The file's order does not matter; a smaller limit is a subset of a larger one.
    """
    if limit is None or limit >= len(rows):
        return list(rows)
    keyed = ((_number(text_key(row.text), b"sample"), place) for place, row in enumerate(rows))
    return [rows[place] for place in sorted(place for _, place in heapq.nsmallest(limit, keyed))]


def _number(key: str, purpose: bytes) -> int:
    """A hash of the text, uniform in [0, 2**64) and independent between purposes."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8, person=purpose).digest(), "big")
