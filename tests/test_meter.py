"""A stage's seconds and memory, on stages that are known to take some."""

import threading
import time

import numpy as np
import pytest
import torch

from llm_neo.meter import StageMeter

MIB = 2**20


def test_seconds_and_tokens() -> None:
    with StageMeter() as meter:
        time.sleep(0.1)
        meter.tokens += 300
    assert 0.1 <= meter.seconds < 5
    assert meter.tokens == 300
    assert meter.peak_device_bytes == 0


def test_the_peak_is_seen_and_falls_again_in_the_next_stage() -> None:
    with StageMeter() as small:
        time.sleep(0.06)
    with StageMeter() as large:
        block = np.ones(200 * MIB // 8)
        time.sleep(0.12)
        del block
    with StageMeter() as after:
        time.sleep(0.06)
    assert large.peak_host_bytes - small.peak_host_bytes > 150 * MIB
    assert large.peak_host_bytes - after.peak_host_bytes > 150 * MIB


def test_even_the_shortest_stage_has_a_peak() -> None:
    with StageMeter() as meter:
        pass
    assert meter.peak_host_bytes > MIB


def test_a_meter_goes_on_counting() -> None:
    meter = StageMeter()
    for _ in range(2):
        with meter:
            time.sleep(0.05)
    assert meter.seconds >= 0.1
    first = meter.peak_host_bytes
    with meter:
        pass
    assert meter.peak_host_bytes >= first


def test_a_stage_inside_another_is_not_counted_twice() -> None:
    outer, inner = StageMeter(), StageMeter()
    started = time.perf_counter()
    with outer:
        time.sleep(0.05)
        with outer.paused(), inner:
            time.sleep(0.2)
        time.sleep(0.05)
    whole = time.perf_counter() - started
    assert inner.seconds >= 0.2
    assert 0.1 <= outer.seconds <= whole - 0.2


def test_an_error_passes_through_and_stops_the_sampling() -> None:
    meter = StageMeter()
    with pytest.raises(KeyError), meter:
        raise KeyError("x")
    with pytest.raises(KeyError), meter, meter.paused():
        raise KeyError("y")
    assert meter.seconds > 0
    assert not [thread for thread in threading.enumerate() if thread.name == "stage-memory"]


def test_a_running_meter_cannot_be_entered_again() -> None:
    with StageMeter() as meter, pytest.raises(RuntimeError, match="is running already"):
        meter.__enter__()
    assert not [thread for thread in threading.enumerate() if thread.name == "stage-memory"]


def test_the_cpu_has_no_device_peak() -> None:
    with StageMeter(torch.device("cpu")) as meter:
        torch.ones(1000).sum()
    assert meter.peak_device_bytes == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_device_peak_is_the_stages_own() -> None:
    device = torch.device("cuda")
    with StageMeter(device) as large:
        block = torch.empty(64 * MIB, dtype=torch.uint8, device=device)
        del block
    with StageMeter(device) as small:
        torch.empty(MIB, dtype=torch.uint8, device=device)
    assert large.peak_device_bytes >= 64 * MIB
    assert MIB <= small.peak_device_bytes <= large.peak_device_bytes - 32 * MIB
