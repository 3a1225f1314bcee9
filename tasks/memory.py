"""The allocator's settings, and how much memory a piece of work needs at its peak, beyond what was in use before."""

import ctypes
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
RESET_PEAK = "5"  # what to write to clear_refs, see proc(5)
# glibc gives memory back and asks for it again at every step otherwise; worth 15-30% of a training step. Ray Train
# calls us in a thread of its own, whose arena cannot hold a block of more than 64 MB: one arena for all, 13% more. And
# pages of 2 MB, where the kernel gives them to who asks: 20% more. numpy asks for its own, so that a process which
# decoded pictures has them in its heap anyway; a worker, whose pictures lie in the object store, has not.
ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}


class PeakMemory:
    """A context; afterwards `megabytes` is the peak above the start, or None with the reason in `unmeasured`.

    On a CPU: resident memory of this process by the kernel's own high-water mark, so nothing is missed between two
    looks; all threads count. Memory that the allocator kept from earlier work is given back first: otherwise the
    second of two equal pieces of work would seem free. On a GPU: memory of torch's tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.megabytes: float | None = None
        self.unmeasured = "" if device.type == "cuda" else why_not_measurable()

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        elif not self.unmeasured:
            ctypes.CDLL(None).malloc_trim(0)
            CLEAR_REFS.write_text(RESET_PEAK)
            self.before = resident_bytes("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            self.megabytes = (torch.cuda.max_memory_allocated(self.device) - self.before) / 2**20
        elif not self.unmeasured:
            self.megabytes = max(0, resident_bytes("VmHWM") - self.before) / 2**20


def resident_bytes(field: str) -> int:
    """Memory of this process: field "VmRSS", resident now, or "VmHWM", the most since the last reset."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{STATUS} has no {field}")


def why_not_measurable() -> str:
    """Why the peak of resident memory cannot be measured here, or ""."""
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        return "peak memory is measured on Linux with glibc only"
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError as error:
        return f"this system does not let a process reset its memory peak ({error})"
    return ""
