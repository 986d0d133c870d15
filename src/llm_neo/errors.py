"""The one family of exceptions: each carries the exit code that the command line ends with.

Every message is one sentence or more that name the offending value, the rule it broke and the remedy.
"""

import errno

from llm_neo.printing import printable, redacted

# Windows knows no quota. A limit on the size of files fills up like a disk.
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)


class LlmNeoError(Exception):
    """A failure that LLM-Neo foresaw; the text is written for the user, without control characters and secrets."""

    exit_code = 1

    def __str__(self) -> str:
        return redacted(printable(super().__str__()))


class InputError(LlmNeoError):
    """The user's recipe, data, model or command line cannot be used as it is."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe breaks one or more rules; all of them are reported together.

    Args:
        origin: the shipped name or the file that the recipe came from.
        problems: one sentence per broken rule, each beginning with the dotted key.
    """

    def __init__(self, origin: str, problems: list[str]) -> None:
        self.origin = origin
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n  ".join([f"recipe {origin} has {count}:", *problems]))


class TeacherGateError(LlmNeoError):
    """The teacher is no better than always answering the majority class."""

    exit_code = 3


class NonFiniteError(LlmNeoError):
    """A loss, gradient or logit is NaN or infinite; nothing was updated with it."""

    exit_code = 4


class ResourceError(LlmNeoError):
    """The memory of a device or the disk is exhausted."""

    exit_code = 5


def is_disk_full(error: BaseException) -> bool:
    """Whether the disk or the user's share of it is full; libraries in Rust tell the system's number in words alone."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(f"(os error {number})" in str(error) for number in _FULL)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch's own error is known by its name, so that torch need not be imported."""
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: " in str(error):
        return True
    return any(
        kind.__name__ == "OutOfMemoryError" and kind.__module__.partition(".")[0] == "torch"
        for kind in type(error).__mro__
    )
