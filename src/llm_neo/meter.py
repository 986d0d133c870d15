"""What a stage of a run costs: seconds, tokens and peak memory."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch

_SAMPLING_SECONDS = 0.05


class StageMeter:
    """Seconds, tokens and peak memory of one stage; entered again, it goes on counting.

    Two meters must not be open at once, since the device has one peak counter: a stage inside another one runs
    under `with outer.paused(), inner:`.

    Attributes:
        seconds: wall-clock time inside the context.
        tokens: tokens without padding that the stage computed; the stage sets it.
        peak_device_bytes: most bytes that tensors held on the CUDA device; 0 elsewhere.
        peak_host_bytes: most resident memory of this process, sampled every 50 ms.
    """

    def __init__(self, device: "torch.device | None" = None) -> None:
        self.seconds = 0.0
        self.tokens = 0
        self.peak_device_bytes = 0
        self.peak_host_bytes = 0
        self._device = device
        self._entered = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        import psutil

        if self._thread is not None:
            raise RuntimeError("this StageMeter is running already; leave it before entering it again")
        self._start_device()
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._sample, args=(psutil.Process(), self._stop), name="stage-memory", daemon=True
        )
        self._entered = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._thread is not None, "left without having been entered"
        try:
            self._stop_device()
        finally:
            self.seconds += time.perf_counter() - self._entered
            self._stop.set()
            self._thread.join()
            self._thread = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop counting while another stage runs inside this one."""
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()

    def _sample(self, process: Any, stop: threading.Event) -> None:
        """Sample at once, then every 50 ms, and a last time after the end."""
        ended = False
        while True:
            self.peak_host_bytes = max(self.peak_host_bytes, process.memory_info().rss)
            if ended:
                return
            ended = stop.wait(_SAMPLING_SECONDS)

    def _start_device(self) -> None:
        if self._device is not None and self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)

    def _stop_device(self) -> None:
        if self._device is not None and self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
            peak = torch.cuda.max_memory_allocated(self._device)
            self.peak_device_bytes = max(self.peak_device_bytes, peak)
