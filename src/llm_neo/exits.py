"""How a command ends: one sentence on stderr and the exit code of the contract, whatever went wrong."""

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from llm_neo.errors import InputError, LlmNeoError, ResourceError, is_disk_full, is_out_of_memory
from llm_neo.interrupts import Terminated, raised_signals

INTERRUPTED = 130
TERMINATED = 143


@dataclass(frozen=True)
class Outcome:
    """What an exception means for the one who called the command.

    Attributes:
        code: the exit code.
        message: for stderr; None says nothing.
        is_fault: the exception was not foreseen, so that its traceback is worth showing.
    """

    code: int
    message: str | None
    is_fault: bool = False


def guarded(action: Callable[[], int], *, debug: bool = False) -> int:
    """Run a command so that every way out of it is an exit code; must be called in the main thread.

    Args:
        action: the command; what it returns is the exit code.
        debug: show the traceback of foreseen errors too.

    Returns:
        the exit code.
    """
    with raised_signals():
        try:
            code = action()
            sys.stdout.flush()
            return code
        except BaseException as error:
            outcome = outcome_of(error)
            _tell(outcome, error, debug)
            return outcome.code


def outcome_of(error: BaseException) -> Outcome:
    """What an exception means; see `Outcome`."""
    if isinstance(error, LlmNeoError):
        return Outcome(error.exit_code, f"error: {error}")
    if isinstance(error, KeyboardInterrupt):
        return Outcome(INTERRUPTED, "interrupted")
    if isinstance(error, Terminated):
        return Outcome(TERMINATED, "terminated")
    if _is_broken_pipe(error):
        return Outcome(0, None)
    if is_out_of_memory(error):
        return Outcome(
            ResourceError.exit_code,
            f"error: out of memory: {_first_line(error)}; lower train.micro_batch_size, "
            "teacher.fine_tune.micro_batch_size or data.max_length_tokens, or use a smaller model",
        )
    if is_disk_full(error):
        filename = getattr(error, "filename", None)
        where = f" while writing {filename}" if filename else ""
        return Outcome(ResourceError.exit_code, f"error: the disk is full{where}; free some space and run again")
    return Outcome(
        LlmNeoError.exit_code,
        f"error: a fault of ours; please report it with the lines above: {_first_line(error)}",
        is_fault=True,
    )


def _tell(outcome: Outcome, error: BaseException, debug: bool) -> None:
    with suppress(OSError):
        if outcome.is_fault or (debug and outcome.message):
            traceback.print_exception(error, file=sys.stderr)
        if outcome.message:
            print(f"llm-neo: {outcome.message}", file=sys.stderr, flush=True)
    if outcome.message is None:
        # What Python still holds for a reader that went away would raise once more when the interpreter ends.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_broken_pipe(error: BaseException) -> bool:
    """Also in the form that typer gives it: a SystemExit raised while a BrokenPipeError was handled."""
    cause = error.__context__ if isinstance(error, SystemExit) else error
    return isinstance(cause, BrokenPipeError)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{f': {lines[0]}' if lines else ''}"


def usage_error(message: str, command: str) -> InputError:
    """The one sentence for a command line that cannot be parsed.

    Args:
        message: what is wrong.
        command: the words that name the command, such as `llm-neo distill`.
    """
    return InputError(f"{' '.join(message.split()).rstrip('.')}; see `{command} --help`")
