"""The gradients of depthwise convolutions against torch's own, in double precision and through networks in bfloat16."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import depthwise
from models.depthwise import DepthwiseConv2d, depthwise_conv2d, input_gradient, weight_gradient
from models.efficientnet_lite import SameConv

SHAPES = [
    (kernel, stride, padding, sides)
    for kernel in (1, 3, 4, 5, 7)
    for stride in (1, 2, 3)
    for padding in ((0, 0), (kernel // 2, kernel // 2), (0, kernel // 2))
    for sides in ((7, 12), (12, 9))
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "sides"), SHAPES)
def test_gradients_are_those_of_torch(
    kernel: int, stride: int, padding: tuple[int, int], sides: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *sides, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(3, 1, kernel, kernel, dtype=torch.float64, generator=generator, requires_grad=True)
    y = F.conv2d(x, weight, None, stride, padding, 1, 3)
    gradient = torch.randn(y.shape, dtype=torch.float64, generator=generator)
    expected_x, expected_weight = torch.autograd.grad(y, (x, weight), gradient)
    with torch.no_grad():
        torch.testing.assert_close(input_gradient(gradient, x, weight, stride, padding), expected_x)
        torch.testing.assert_close(weight_gradient(gradient, x, weight, stride, padding), expected_weight)


@pytest.mark.parametrize(
    "conv",
    [lambda: DepthwiseConv2d(8, 3, 2), lambda: DepthwiseConv2d(8, 5), lambda: SameConv(8, 8, 5, 2, groups=8)],
)
def test_in_bfloat16_gradients_are_as_near_to_the_exact_ones_as_its_rounding_allows(
    conv: Callable[[], nn.Conv2d],
) -> None:
    torch.manual_seed(0)
    layer = conv()
    exact = [gradient.clone() for gradient in gradients(layer, precise=True)]
    for mine, true in zip(gradients(layer, precise=False), exact, strict=True):
        assert (mine - true).norm() / true.norm() < 0.01


@pytest.mark.parametrize("px", [1, 2])
@pytest.mark.parametrize(
    "conv",
    [
        lambda: DepthwiseConv2d(8, 3),
        lambda: DepthwiseConv2d(8, 3, 2),
        lambda: DepthwiseConv2d(8, 5),
        lambda: SameConv(8, 8, 3, 2, groups=8),
        lambda: SameConv(8, 8, 5, groups=8),
    ],
)
def test_maps_narrower_than_the_filter_have_gradients_that_can_be_trusted(
    conv: Callable[[], nn.Conv2d], px: int
) -> None:
    """Where torch's own, of convolutions that are not depthwise, are NaN or wrong: tests/test_tasks_precision.py."""
    torch.manual_seed(0)
    layer = conv()
    exact = [gradient.clone() for gradient in gradients(layer, precise=True, px=px)]
    for _ in range(5):
        unwritten = torch.full((100_000,), float("nan"))
        del unwritten  # the next to ask for memory finds these
        for mine, true in zip(gradients(layer, precise=False, px=px), exact, strict=True):
            assert (mine - true).norm() <= 0.02 * true.norm()


def gradients(layer: nn.Conv2d, precise: bool, px: int = 14) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 8, px, px, generator=generator, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
        y = layer(x)
    return list(torch.autograd.grad(y, (x, layer.weight), torch.ones_like(y)))


def test_the_fast_kernels_are_taken_in_bfloat16_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.dtype] = []
    own = depthwise.weight_gradient
    monkeypatch.setattr(
        depthwise, own.__name__, lambda gradient, *rest: taken.append(gradient.dtype) or own(gradient, *rest)
    )
    weight = torch.randn(4, 1, 5, 5, requires_grad=True)
    for dtype in (torch.float32, torch.bfloat16):
        y = depthwise_conv2d(torch.randn(1, 4, 8, 8, dtype=dtype), weight.to(dtype), 1, (2, 2))
        y.float().sum().backward()
    assert taken == [torch.bfloat16]
