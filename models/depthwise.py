"""Depthwise convolution whose gradients do not fall back to slow kernels: one filter for each channel.

In bfloat16 on a CPU torch 2.13's oneDNN has no fast kernel for two gradients: that of the input at a stride above 1
(70 ms for 64x96x48x48, against 1.8 ms forward), and that of filters larger than 3x3 (25 ms, against 0.7 ms). Both are
put in terms of kernels it has. The gradient of the input is the correlation of the output's gradient, spread out with
zeros, with the turned filters. That of a large filter is put together from 3x3 parts, each of which is the gradient
of a 3x3 convolution of a shifted input. `benchmarks/depthwise.py` measures both.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

FAST_PX = 3  # the side of the filters whose gradient is fast


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` of as many groups as channels, without bias."""

    def __init__(self, channels: int, kernel_px: int, stride: int = 1) -> None:
        super().__init__(channels, channels, kernel_px, stride, kernel_px // 2, groups=channels, bias=False)
        self.border_px = kernel_px // 2

    def forward(self, input: Tensor) -> Tensor:
        return depthwise_conv2d(input, self.weight, self.stride[0], (self.border_px, self.border_px))


def depthwise_conv2d(input: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
    """(B, C, H, W) by filters (C, 1, k, k) → (B, C, H', W'); `padding` above and below, left and right."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
    if input.device.type != "cpu" or dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return F.conv2d(input, weight, None, stride, padding, 1, len(weight))
    if min(input.shape[2:]) < weight.shape[-1]:
        # oneDNN's gradients of filters that are wider than the picture are not to be trusted: see tasks.precision
        with torch.autocast("cpu", enabled=False):
            return F.conv2d(input.float(), weight.float(), None, stride, padding, 1, len(weight)).to(dtype)
    if stride > 1 or weight.shape[-1] > FAST_PX:
        output: Tensor = Depthwise.apply(input.to(dtype), weight.to(dtype), stride, padding)
        return output
    return F.conv2d(input, weight, None, stride, padding, 1, len(weight))


class Depthwise(torch.autograd.Function):
    """`depthwise_conv2d` with the gradients below."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(input, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        input, weight = ctx.saved_tensors
        of_input, of_weight = ctx.needs_input_grad[:2]
        return (
            input_gradient(gradient, input, weight, ctx.stride, ctx.padding) if of_input else None,
            weight_gradient(gradient, input, weight, ctx.stride, ctx.padding) if of_weight else None,
            None,
            None,
        )


def input_gradient(
    gradient: Tensor, input: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]
) -> Tensor:
    """∂/∂input, (B, C, H, W), where `gradient` is (B, C, H', W')."""
    kernel = weight.shape[-1]
    if stride > 1:
        sides = (side - kernel + 1 + 2 * pad for side, pad in zip(input.shape[2:], padding, strict=True))
        spread = input.new_zeros(*input.shape[:2], *sides).to(memory_format=torch.channels_last)
        spread[:, :, ::stride, ::stride] = gradient
        gradient = spread
    return F.conv2d(
        gradient, weight.flip(2, 3), None, 1, [kernel - 1 - pad for pad in padding], 1, len(weight)
    )


def weight_gradient(
    gradient: Tensor, input: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]
) -> Tensor:
    """∂/∂weight, (C, 1, k, k)."""
    kernel, part = weight.shape[-1], FAST_PX
    if kernel <= part:
        return small_weight_gradient(gradient, input, weight, stride, padding)
    tall, wide = ((places - 1) * stride + part for places in gradient.shape[2:])
    padded = F.pad(input, (padding[1], padding[1], padding[0], padding[0]))
    result = torch.empty_like(weight)
    like = weight[:, :, :part, :part].contiguous()
    starts = (*range(0, kernel - part, part), kernel - part)
    for top in starts:
        for left in starts:
            seen = padded[:, :, top : top + tall, left : left + wide]
            seen = seen.contiguous(memory_format=torch.channels_last)
            result[:, :, top : top + part, left : left + part] = small_weight_gradient(
                gradient, seen, like, stride, (0, 0)
            )
    return result


def small_weight_gradient(
    gradient: Tensor, input: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]
) -> Tensor:
    """oneDNN's own; of `weight` the shape alone counts."""
    _, result, _ = torch.ops.aten.convolution_backward(
        gradient, input, weight, None, [stride] * 2, padding, [1, 1], False, [0, 0], len(weight),
        [False, True, False],
    )  # fmt: skip
    return result
