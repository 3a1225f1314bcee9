"""The 68 landmarks of iBUG (https://ibug.doc.ic.ac.uk/resources/300-W/) of a face, as face-api publishes a network for
them: four blocks of depthwise separable convolutions, dense in their sums, 0.36 M weights.

It is given a picture that a face fills, at 112 x 112; models.landmarks has networks to train. Tensors keep the names of
face-api's files: `dense0.conv1.depthwise_filter` and so on.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INPUT_PX = 112
MEAN_RGB, DIVISOR = (122.782, 117.001, 104.298), 255.0
NUM_POINTS = 68
CHANNELS = (32, 64, 128, 256)


class Filters(nn.Module):
    """A convolution that gives ⌈side / stride⌉ pixels a side, padded below and to the right first, as in TensorFlow."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.filters = nn.Parameter(torch.empty(outs, ins, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outs))
        nn.init.kaiming_normal_(self.filters)

    def forward(self, x: Tensor, stride: int) -> Tensor:
        return F.conv2d(_padded(x, stride), self.filters, self.bias, stride)


class Separable(nn.Module):
    """A filter a channel, then a convolution of one pixel."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.depthwise_filter = nn.Parameter(torch.empty(1, ins, 3, 3))
        self.pointwise_filter = nn.Parameter(torch.empty(outs, ins, 1, 1))
        self.bias = nn.Parameter(torch.zeros(outs))
        nn.init.normal_(self.depthwise_filter, std=1 / 3)
        nn.init.kaiming_normal_(self.pointwise_filter)

    def forward(self, x: Tensor, stride: int) -> Tensor:
        each = self.depthwise_filter.transpose(0, 1)
        x = F.conv2d(_padded(x, stride), each, stride=stride, groups=len(each))
        return F.conv2d(x, self.pointwise_filter, self.bias)


class Dense(nn.Module):
    """Four convolutions; each but the first is given the sum of all before it: (B, C, H, W) → (B, C', H / 2, W / 2)."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.conv0 = Filters(ins, outs) if ins == 3 else Separable(ins, outs)
        self.conv1, self.conv2, self.conv3 = (Separable(outs, outs) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        total = F.relu(self.conv0(x, 2))
        seen = total
        for conv in (self.conv1, self.conv2, self.conv3):
            total = total + conv(seen, 1)
            seen = F.relu(total)
        return seen


class FaceLandmarks68(nn.Module):
    """Faces (B, 3, 112, 112), RGB levels 0…255 → points (B, 68, 2), x and y as shares of the side."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        for number, (ins, outs) in enumerate(zip((3, *CHANNELS[:-1]), CHANNELS, strict=True)):
            self.add_module(f"dense{number}", Dense(ins, outs))
        self.fc = Linear(CHANNELS[-1], 2 * NUM_POINTS)
        self.register_buffer("mean", torch.tensor(MEAN_RGB).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = (images.float() - self.mean) / DIVISOR
        for number in range(len(CHANNELS)):
            x = self.get_submodule(f"dense{number}")(x)
        return self.fc(F.avg_pool2d(x, 7).flatten(1)).view(-1, NUM_POINTS, 2)


class Linear(nn.Module):
    """A linear layer, stored the other way round than torch's: `weights` (in, out)."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.empty(ins, outs))
        self.bias = nn.Parameter(torch.zeros(outs))
        nn.init.normal_(self.weights, std=ins**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weights + self.bias


def _padded(x: Tensor, stride: int) -> Tensor:
    """Zeros for a filter of three: around, or, where sides are even and halved, below and to the right alone."""
    missing = [max((-(-side // stride) - 1) * stride + 3 - side, 0) for side in (x.shape[3], x.shape[2])]
    (left, top) = (each // 2 for each in missing)
    return F.pad(x, (left, missing[0] - left, top, missing[1] - top))
