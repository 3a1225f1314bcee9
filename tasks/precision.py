"""Which number format a network computes in.

bfloat16 halves the memory traffic, and doubles the arithmetic or better, where the hardware multiplies in it.
Where it does not, it is emulated through float32 and slower than float32 itself. So "auto" asks what the
hardware does, not what the library accepts.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.backends import cudnn

from tasks.settings import Precision

# Names of torch.cpu.get_capabilities(): x86's two instruction sets, then Arm's.
NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "bf16")


def computes_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 natively; a CPU that only converts to and fro does not count."""
    if device.type == "cpu":
        # oneDNN alone is no answer: it accepts bf16 from plain AVX-512 on, by way of float32.
        able = torch.cpu.get_capabilities()
        native = any(able.get(name, False) for name in NATIVE_BF16)
        return native and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return False


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype to compute in: "bf16" and "fp32" mean themselves, "auto" is bf16 where it is native.

    "bf16" on hardware that emulates it is obeyed: it gives the numbers of bf16, only slowly.
    """
    if precision == "auto":
        return torch.bfloat16 if computes_bf16(device) else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """A context that computes in `dtype` on `device`; for float32 it does nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


@contextmanager
def predicting(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """`autocast` for predictions, whose float32 is that of every machine: cuDNN's own has ten bits of mantissa."""
    with cudnn.flags(enabled=True, allow_tf32=False), autocast(device, dtype):
        yield


class _InFloat32WhereNarrow:
    """A convolution that leaves bfloat16 where its pictures are narrower than its filters.

    There oneDNN, as torch 2.13 ships it, computes the gradient of the filters from memory that nobody has written:
    NaN, or worse, plain numbers that are wrong. Seen in two dimensions with a stride, in three without one too.
    """

    def forward(self, input: Tensor) -> Tensor:
        sides, filters = input.shape[2:], self.kernel_size  # type: ignore[attr-defined]
        if not any(side < extent for side, extent in zip(sides, filters, strict=True)):
            return super().forward(input)  # type: ignore[misc]
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())  # type: ignore[misc]


class Conv1d(_InFloat32WhereNarrow, nn.Conv1d): ...


class Conv2d(_InFloat32WhereNarrow, nn.Conv2d): ...


class Conv3d(_InFloat32WhereNarrow, nn.Conv3d): ...


CAREFUL: dict[type[nn.Module], type[nn.Module]] = {nn.Conv1d: Conv1d, nn.Conv2d: Conv2d, nn.Conv3d: Conv3d}


def mend_gradients(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Before training `model` in `dtype`: let its convolutions compute in float32 where their gradients are broken."""
    if device.type == "cpu" and dtype == torch.bfloat16:
        for module in model.modules():
            module.__class__ = CAREFUL.get(type(module), type(module))
