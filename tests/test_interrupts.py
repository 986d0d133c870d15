"""Signals: raised at once, or noted and delivered when it is safe; the second SIGINT ends the process."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import llm_neo
from llm_neo.interrupts import Terminated, held_signals, raise_if_arrived, raised_signals

SOURCE = str(Path(llm_neo.__file__).parents[1])


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_held_signal_waits_for_the_end(number: signal.Signals, kind: type[BaseException]) -> None:
    done: list[str] = []

    def step() -> None:
        with held_signals() as held:
            os.kill(os.getpid(), number)
            done.append("the step")
            assert held.number == number

    with raised_signals():
        with pytest.raises(kind):
            step()
        with pytest.raises(kind):
            raise_if_arrived()
    raise_if_arrived()
    assert done == ["the step"]


def test_a_pause_lets_signals_through_and_then_holds_again() -> None:
    order: list[str] = []

    def evaluate() -> None:
        with held_signals() as held:
            try:
                with held.paused():
                    os.kill(os.getpid(), signal.SIGTERM)
                    order.append("never")
            except Terminated:
                os.kill(os.getpid(), signal.SIGTERM)
                order.append("saved")
                raise

    with raised_signals(), pytest.raises(Terminated):
        evaluate()
    assert order == ["saved"]


def test_a_signal_that_was_noted_is_delivered_when_a_pause_begins() -> None:
    def evaluate() -> None:
        with held_signals() as held:
            os.kill(os.getpid(), signal.SIGINT)
            with held.paused():
                raise AssertionError("the evaluation began")

    with raised_signals(), pytest.raises(KeyboardInterrupt):
        evaluate()


def test_the_callers_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with raised_signals(), held_signals():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_is_ignored_stays_so() -> None:
    """A shell's background job ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with raised_signals(), held_signals() as held:
            os.kill(os.getpid(), signal.SIGINT)
            assert held.number is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_holds_nothing() -> None:
    noted: list[object] = []

    def work() -> None:
        with held_signals() as held:
            noted.append(held.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert noted == [None]


def test_a_second_sigterm_is_passed_over_while_the_first_is_acted_on() -> None:
    saved = False

    def command() -> None:
        nonlocal saved
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            saved = True

    with raised_signals(), pytest.raises(Terminated):
        command()
    assert saved


@pytest.mark.parametrize("held", [True, False])
def test_a_second_sigint_ends_the_process_at_once(tmp_path: Path, held: bool) -> None:
    """Also while the first one waits for a step that takes a minute, or is acted on."""
    waits = "with held_signals():\n            (folder / 'ready').touch()\n            time.sleep(60)"
    saves = "try:\n            (folder / 'ready').touch()\n            time.sleep(60)\n"
    saves += "        finally:\n            (folder / 'saving').touch()\n            time.sleep(60)"
    program = (
        "import time\nfrom pathlib import Path\nfrom llm_neo.exits import guarded\n"
        f"from llm_neo.interrupts import held_signals\nfolder = Path({str(tmp_path)!r})\n"
        f"def action():\n        {waits if held else saves}\nguarded(action)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": SOURCE})
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    while not held and not (tmp_path / "saving").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == -signal.SIGINT
