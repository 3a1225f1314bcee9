"""What a training computed on: whatever decides the last bits of its weights and is in none of its parameters.

PyTorch promises the same results only for the same release and platform
(https://docs.pytorch.org/docs/stable/notes/randomness.html): kernels are chosen by the processor's instructions, and
sums are split among threads. A run keeps this in the tags `trained.*` of its record.
"""

import platform
from collections.abc import Mapping
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")
NAMES = ("torch", "processor", "device", "threads", "workers")
THEN = " then "  # between what several attempts computed on


def describe(device: torch.device, num_workers: int) -> dict[str, str]:
    """This process, as rank 0 of a training: torch's version, processor, device and threads, and how many ranks."""
    return {
        "torch": str(torch.__version__),
        "processor": f"{processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": str(torch.get_num_threads()),
        "workers": str(num_workers),
    }


def processor() -> str:
    """The model of this machine's processor, as Linux calls it; elsewhere its architecture."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.is_file() else []
    names = [
        value.strip()
        for key, _, value in (line.partition(":") for line in lines)
        if key.strip() == "model name"
    ]
    return names[0] if names else platform.machine()


def joined(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """What all attempts of a run computed on: a value a name, several with `THEN` between them."""
    found = {}
    for name, value in now.items():
        earlier = before.get(name, value)
        stayed = earlier.split(THEN)[-1] == value
        found[name] = earlier if stayed else f"{earlier}{THEN}{value}"
    return found


def differences(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Why the same training may give other bits here, one reason each; [] where it must give the same."""
    gpus = (
        [f"it was trained on a GPU ({recorded['device']})"] if recorded.get("device", "cpu") != "cpu" else []
    )
    names = sorted({*recorded, *now} - ({"device"} if gpus else set()))
    return gpus + [
        f"{name}: {recorded.get(name) or 'not recorded'} then, {now.get(name) or 'not known'} now"
        for name in names
        if recorded.get(name) != now.get(name)
    ]
