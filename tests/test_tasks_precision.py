"""Precision: what "auto" means on a machine."""

from types import MappingProxyType
from typing import Any

import pytest
import torch

from tasks.precision import autocast, computes_bf16, mend_gradients, resolve_precision

CPU = torch.device("cpu")


class MkldnnOps:
    """Stands in for torch.ops.mkldnn, whose answer is the machine's."""

    def __init__(self, supported: bool) -> None:
        self.supported = supported

    def _is_mkldnn_bf16_supported(self) -> bool:
        return self.supported


def pretend(monkeypatch: pytest.MonkeyPatch, library: bool, **capabilities: Any) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(capabilities))
    monkeypatch.setattr(torch.ops, "mkldnn", MkldnnOps(library), raising=False)


@pytest.mark.parametrize(
    ("capabilities", "library", "native"),
    [
        ({"avx2": True}, False, False),
        ({"avx512_f": True, "avx512_bw": True}, True, False),  # accepted by oneDNN, but emulated
        ({"avx512_f": True, "avx512_bf16": True}, True, True),
        ({"avx512_f": True, "amx_bf16": True}, True, True),
        ({"avx512_f": True, "amx_bf16": True}, False, False),  # a library built without
        ({"neon": True, "bf16": True}, True, True),
    ],
)
def test_auto_is_bf16_only_where_the_cpu_multiplies_in_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], library: bool, native: bool
) -> None:
    pretend(monkeypatch, library, **capabilities)
    assert computes_bf16(CPU) is native
    assert resolve_precision("auto", CPU) is (torch.bfloat16 if native else torch.float32)


def test_a_named_precision_is_obeyed_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for native in (False, True):
        pretend(monkeypatch, native, amx_bf16=native)
        assert resolve_precision("bf16", CPU) is torch.bfloat16
        assert resolve_precision("fp32", CPU) is torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_the_dtype_asked_for(dtype: torch.dtype) -> None:
    with autocast(CPU, dtype):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype is dtype
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_auto_on_a_gpu_follows_its_generation() -> None:
    device = torch.device("cuda", 0)
    ampere = torch.cuda.get_device_properties(device).major >= 8
    assert (resolve_precision("auto", device) is torch.bfloat16) == ampere


@pytest.mark.parametrize(
    ("conv", "sides"),
    [
        (torch.nn.Conv1d(16, 64, 3, 2, 1), (1,)),
        (torch.nn.Conv2d(64, 128, 3, 2, 1), (3, 1)),
        (torch.nn.Conv2d(128, 256, 5, 1, 2), (1, 4)),
        (torch.nn.Conv3d(64, 64, 3, 1, 1), (2, 2, 2)),
        (torch.nn.Conv3d(16, 32, 5, 1, 2), (3, 3, 3)),
    ],
)
def test_pictures_narrower_than_filters_have_gradients_too(conv: Any, sides: tuple[int, ...]) -> None:
    """oneDNN's own are NaN or wrong for each of these, most of the times that they are computed."""
    torch.manual_seed(0)
    images = torch.randn(8, conv.in_channels, *sides)
    conv(images).square().mean().backward()
    expected, keys = conv.weight.grad.clone(), conv.state_dict().keys()
    mend_gradients(conv, CPU, torch.bfloat16)
    for _ in range(5):
        conv.weight.grad = None
        unwritten = torch.full((100_000,), float("nan"))
        del unwritten  # the next to ask for memory finds these
        with autocast(CPU, torch.bfloat16):
            conv(images).square().mean().backward()
        assert (conv.weight.grad - expected).norm() < 0.02 * expected.norm()
    assert conv.state_dict().keys() == keys


def test_wide_pictures_stay_in_bfloat16() -> None:
    conv = torch.nn.Conv2d(4, 4, 3, padding=1)
    mend_gradients(conv, CPU, torch.bfloat16)
    with autocast(CPU, torch.bfloat16):
        assert conv(torch.randn(1, 4, 3, 3)).dtype == torch.bfloat16
