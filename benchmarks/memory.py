"""Peak memory of this process."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def peak_host_bytes() -> int:
    """The most resident memory that this program held.

    Linux says it in the kernel's own file, from the start of the program on; `ru_maxrss` there begins with what the
    parent held when it started this process.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


class DeviceMemory:
    """The most bytes that tensors held on the device, by stage; 0 on a CPU.

    Attributes:
        peaks: bytes by the name of the stage.
    """

    def __init__(self, device: "torch.device") -> None:
        self.peaks: dict[str, int] = {}
        self._device = device

    def end_stage(self, name: str) -> None:
        """Note the peak since the last stage's end under `name`, and begin the next stage."""
        peak = 0
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
            peak = torch.cuda.max_memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        self.peaks[name] = max(peak, self.peaks.get(name, 0))
