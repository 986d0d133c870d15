"""Every way out of a command: exit code, stderr and nothing else."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

import llm_neo
from llm_neo.errors import InputError, NonFiniteError, RecipeError, ResourceError, TeacherGateError
from llm_neo.exits import Outcome, guarded, outcome_of, usage_error
from llm_neo.interrupts import Terminated

SOURCE = str(Path(llm_neo.__file__).parents[1])


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("no such file"), 2, "error: no such file"),
        (RecipeError("r", ["a: b"]), 2, "error: recipe r has 1 problem:\n  a: b"),
        (TeacherGateError("too weak"), 3, "error: too weak"),
        (NonFiniteError("step 3"), 4, "error: step 3"),
        (ResourceError("full"), 5, "error: full"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(), 143, "terminated"),
        (MemoryError(), 5, "error: out of memory: MemoryError; lower train.micro_batch_size"),
        (
            RuntimeError("[enforce fail at alloc.cpp:9] DefaultCPUAllocator: not enough memory\nmore"),
            5,
            "error: out of memory: RuntimeError: [enforce fail at alloc.cpp:9] DefaultCPUAllocator: not enough",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            5,
            "error: the disk is full while writing runs/x; free some space and run again",
        ),
        (OSError(errno.EDQUOT, "quota"), 5, "error: the disk is full; free some space and run again"),
        (
            SafetensorError(f"Error while serializing: I/O error: No space left (os error {errno.ENOSPC})"),
            5,
            "error: the disk is full; free some space and run again",
        ),
    ],
)
def test_a_foreseen_end_has_its_code_and_one_message(error: BaseException, code: int, message: str) -> None:
    outcome = outcome_of(error)
    assert (outcome.code, outcome.is_fault) == (code, False)
    assert outcome.message is not None
    assert outcome.message.startswith(message)


def test_the_out_of_memory_error_of_torch_is_known_without_importing_it() -> None:
    torch = pytest.importorskip("torch")
    assert outcome_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")).code == 5

    class OutOfMemoryError(Exception):
        """Of somebody else."""

    assert outcome_of(OutOfMemoryError()).code == 1


def test_anything_else_is_a_fault_of_ours() -> None:
    assert outcome_of(ZeroDivisionError("division by zero")) == Outcome(
        1,
        "error: a fault of ours; please report it with the lines above: ZeroDivisionError: division by zero",
        is_fault=True,
    )


def run(action: str, **options: bool) -> subprocess.CompletedProcess[str]:
    """A process that ends as `guarded` says; `action` is the body of the command."""
    lines = "\n".join(f"    {line}" for line in action.splitlines())
    program = (
        f"import os, sys, time\nfrom llm_neo.errors import InputError\nfrom llm_neo.exits import guarded\n"
        f"def action():\n{lines}\nsys.exit(guarded(action, **{options}))"
    )
    environment = os.environ | {"PYTHONPATH": SOURCE}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)


def test_a_foreseen_error_shows_its_traceback_only_on_demand() -> None:
    quiet = run("raise InputError('x must be y')")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (2, "", "llm-neo: error: x must be y\n")
    loud = run("raise InputError('x must be y')", debug=True)
    assert loud.returncode == 2
    assert loud.stderr.startswith("Traceback (most recent call last):")
    assert loud.stderr.endswith("\nllm-neo: error: x must be y\n")


def test_a_fault_always_shows_its_traceback() -> None:
    ended = run("1 / 0")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("llm-neo: error: a fault of ours")


def test_what_the_command_returns_is_the_code() -> None:
    ended = run("print('done')\nreturn 0")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_command_save_what_it_has(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """The handler raises, so that `finally` runs; a second SIGTERM during that is ignored."""
    program = (
        "import os, signal, sys, time\nfrom pathlib import Path\nfrom llm_neo.exits import guarded\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "def action():\n"
        "    try:\n"
        "        (folder / 'ready').touch()\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGTERM) if sys.argv[1] == 'twice' else None\n"
        "        (folder / 'saved').touch()\n"
        "sys.exit(guarded(action))"
    )
    twice = "twice" if number is signal.SIGTERM else "once"
    process = subprocess.Popen(
        [sys.executable, "-c", program, twice],
        env=os.environ | {"PYTHONPATH": SOURCE},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "ready").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert (tmp_path / "saved").exists()
    assert stderr == f"llm-neo: {'terminated' if code == 143 else 'interrupted'}\n"


def test_a_reader_that_went_away_is_no_error() -> None:
    """`llm-neo ... | head -0`: neither the flush at the end nor that of the interpreter complains."""
    program = (
        "import sys, time\nfrom llm_neo.exits import guarded\n"
        "def action():\n    time.sleep(0.3)\n    print('x' * 10)\n    return 0\nsys.exit(guarded(action))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": SOURCE},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait(30)) == (b"", 0)
    process.stderr.close()


def test_a_broken_pipe_is_known_in_the_form_that_typer_gives_it(capsys: pytest.CaptureFixture[str]) -> None:
    def broken_in_typer() -> int:
        try:
            raise BrokenPipeError
        except BrokenPipeError:
            sys.exit(1)

    assert guarded(broken_in_typer) == 0
    assert capsys.readouterr().err == ""
    assert outcome_of(SystemExit(1)).is_fault


def test_the_handler_of_the_caller_is_restored(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def action() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        return 0

    assert guarded(action) == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert capsys.readouterr().err == "llm-neo: terminated\n"


def test_a_usage_error_is_one_line_that_names_the_help() -> None:
    error = usage_error("Missing option '--to'. Choose from:\n\tadapter,\n\tmerged", "llm-neo export")
    assert str(error) == "Missing option '--to'. Choose from: adapter, merged; see `llm-neo export --help`"
    assert error.exit_code == 2
