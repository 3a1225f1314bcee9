"""Sliding windows in one pass: a classifier of windows made fully convolutional.

Sermanet et al. 2014, "OverFeat", https://arxiv.org/abs/1312.6229, section 3.5. A dense layer behind an S×S map is an
S×S convolution, and each further one a 1×1 convolution; the mean over all places of the map is the mean over S×S places
at stride 1. The weights stay the same numbers, reshaped. The network then takes pictures of any size from the window's
on, and each place of its output is what the classifier says of the window there. What windows share is computed once.

Without padding inside, a place equals its window but for rounding. With padding, the classifier sees zeros around its
window where the whole picture goes on: the two differ, and only for a picture as large as the window are they the same.
docs/slidingwindows.md has how much.
"""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from models.airnet import LOGIT_SCALE, AirNet
from models.alexnet import AlexNet
from models.googlenet import GoogLeNet
from models.inception import InceptionV3
from models.lenet import LeNet5
from models.mobilenet import MobileNetV2
from models.nin import NetworkInNetwork
from models.overfeat import OverFeatCourse
from models.receptive import receptive_fields
from models.resnet import CifarResNet, ResNet
from models.squeezenet import SqueezeNet
from models.vgg import VGG

# by how much a picture is widened to see how many places that adds: all strides here divide it
REACH_PX = 1024
NO_MEANING_IN_MAPS = (nn.Dropout, nn.Flatten)  # left out: a converted network is not trained


def as_convolution(dense: nn.Linear, side: int, pooling: nn.AdaptiveAvgPool2d | None = None) -> nn.Conv2d:
    """The dense layer behind a flattened map of `side`×`side` as a convolution of that side, with the same weights.

    Where the map was brought to t×t by `pooling` first (VGG's and AlexNet's), that is folded into the weights: it is
    linear. From a map of t×t it changes nothing, and the weights are only reshaped.
    """
    if pooling is not None:
        places = torch.eye(side * side).view(side * side, 1, side, side)
        spread = pooling(places).flatten(1).to(dense.weight)  # (side * side, t * t)
        target = spread.shape[1]
    else:
        spread, target = None, side * side
    channels, rest = divmod(dense.in_features, target)
    if rest:
        raise ValueError(
            f"a dense layer of {dense.in_features} inputs does not follow a map of {side}x{side}"
        )
    weight = dense.weight.detach().view(dense.out_features, channels, target)
    if spread is not None and side * side != target:
        weight = weight @ spread.T
    conv = nn.Conv2d(channels, dense.out_features, side, bias=dense.bias is not None).to(dense.weight)
    with torch.no_grad():
        conv.weight.copy_(weight.reshape(conv.weight.shape))
        if conv.bias is not None:
            conv.bias.copy_(dense.bias)
    return conv


class FullyConvolutional(nn.Module):
    """Pictures (B, C, H, W) → logits of all windows (B, K, rows, columns), for evaluation.

    The window at (row, column) has its upper left corner at (`stride_px` * row, `stride_px` * column) and `window_px`
    pixels a side; rows = (H - window_px) // stride_px + 1. What no whole window reaches is left out. Where convolutions
    pad, a place sees `beyond_px` pixels above and below its window, in whole strides.
    """

    def __init__(
        self, features: nn.Module, head: nn.Module, window_px: int, stride_px: int, beyond_px: tuple[int, int]
    ) -> None:
        super().__init__()
        self.features, self.head = features, head
        self.window_px, self.stride_px, self.beyond_px = window_px, stride_px, beyond_px

    def places(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Rows and columns of windows in a picture; raises ValueError if not one fits."""
        if min(height_px, width_px) < self.window_px:
            raise ValueError(
                f"no window of {self.window_px} px fits into {width_px}x{height_px} px; give a larger picture"
            )
        return tuple((side - self.window_px) // self.stride_px + 1 for side in (height_px, width_px))  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.places(x.shape[2], x.shape[3])
        # A picture that ends where its last window does: poolings that round up would see part of a window more.
        height, width = ((num - 1) * self.stride_px + self.window_px for num in (rows, columns))
        return self.head(self.features(x[:, :, :height, :width]))

    def bands(self, height_px: int, width_px: int, most_px: int) -> Iterator[tuple[slice, slice]]:
        """A picture in bands of about `most_px` pixels: rows of pixels, and the rows of windows of theirs that count.

        One after the other, what counts of each is what the whole picture gives: a band has all pixels that its places
        see. What neighbours share is computed twice, so that a band is at least twice as high as that.
        """
        rows, _columns = self.places(height_px, width_px)
        above, below = self.beyond_px
        shared = self.window_px - self.stride_px + above + below
        num = max(1, (max(most_px // width_px, 2 * shared) - shared) // self.stride_px)
        for first in range(0, rows, num):
            end = min(first + num, rows)
            # a multiple of the stride: what is pooled together stays together
            start_px = max(0, first * self.stride_px - above)
            end_px = min(height_px, (end - 1) * self.stride_px + self.window_px + below)
            skipped = first - start_px // self.stride_px
            yield slice(start_px, end_px), slice(skipped, skipped + end - first)


# of a network: the modules up to its last map, and from a map's side what stands for all behind it
Parts = tuple[nn.Module, Callable[[int], nn.Module]]


def dense_parts(net: LeNet5 | OverFeatCourse | AlexNet | VGG) -> Parts:
    """Convolutions, then dense layers."""
    pooling = net.avgpool if isinstance(net, AlexNet | VGG) else None

    def head(side: int) -> nn.Module:
        layers: list[nn.Module] = []
        for layer in net.classifier:
            if isinstance(layer, nn.Linear):
                is_first = not any(isinstance(made, nn.Conv2d) for made in layers)
                layers.append(as_convolution(layer, *((side, pooling) if is_first else (1,))))
            elif not isinstance(layer, NO_MEANING_IN_MAPS):
                layers.append(copy.deepcopy(layer))
        return nn.Sequential(*layers)

    return net.features, head


def averaged(features: nn.Module, dense: nn.Linear | None) -> Parts:
    """Convolutions, the mean over all places, and one dense layer or none."""

    def head(side: int) -> nn.Module:
        mean = nn.AvgPool2d(side, stride=1)
        return nn.Sequential(mean, *([] if dense is None else [as_convolution(dense, 1)]))

    return features, head


def airnet_parts(net: AirNet) -> Parts:
    """The maximum over all places, and scaled logits."""

    def head(side: int) -> nn.Module:
        conv = as_convolution(net.head, 1)
        with torch.no_grad():
            conv.weight.mul_(LOGIT_SCALE)
        return nn.Sequential(nn.MaxPool2d(side, stride=1), conv)

    return nn.Sequential(net.whiten, nn.GELU(), net.groups), head


def googlenet_features(net: GoogLeNet) -> nn.Module:
    def pool(size: int) -> nn.Module:
        return nn.MaxPool2d(size, 2, ceil_mode=True)

    fourth = (net.inception4a, net.inception4b, net.inception4c, net.inception4d, net.inception4e)
    return nn.Sequential(
        net.conv1, pool(3), net.conv2, net.conv3, pool(3), net.inception3a, net.inception3b, pool(3),
        *fourth, pool(2), net.inception5a, net.inception5b,
    )  # fmt: skip


def inception_features(net: InceptionV3) -> nn.Module:
    stem = (net.Conv2d_1a_3x3, net.Conv2d_2a_3x3, net.Conv2d_2b_3x3, nn.MaxPool2d(3, 2), net.Conv2d_3b_1x1)
    fifth = (net.Conv2d_4a_3x3, nn.MaxPool2d(3, 2), net.Mixed_5b, net.Mixed_5c, net.Mixed_5d, net.Mixed_6a)
    sixth = (net.Mixed_6b, net.Mixed_6c, net.Mixed_6d, net.Mixed_6e, net.Mixed_7a, net.Mixed_7b, net.Mixed_7c)
    return nn.Sequential(*stem, *fifth, *sixth)


def resnet_features(net: ResNet) -> nn.Module:
    return nn.Sequential(
        net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3, net.layer4
    )


PARTS: dict[type[nn.Module], Callable[..., Parts]] = {
    OverFeatCourse: dense_parts,
    LeNet5: dense_parts,
    AlexNet: dense_parts,
    VGG: dense_parts,
    ResNet: lambda net: averaged(resnet_features(net), net.fc),
    CifarResNet: lambda net: averaged(nn.Sequential(net.conv1, net.bn1, net.relu, net.layers), net.fc),
    AirNet: airnet_parts,
    NetworkInNetwork: lambda net: averaged(net.features, None),
    SqueezeNet: lambda net: averaged(nn.Sequential(net.features, *net.classifier[:3]), None),
    MobileNetV2: lambda net: averaged(net.features, net.classifier[1]),
    GoogLeNet: lambda net: averaged(googlenet_features(net), net.fc),
    InceptionV3: lambda net: averaged(inception_features(net), net.fc),
}


def map_side(features: nn.Module, channels: int, px: int) -> int:
    """Side of the map of a picture of `px`, found without computing it; `features` is on the meta device."""
    with torch.no_grad():
        return int(features(torch.empty(1, channels, px, px, device="meta")).shape[-1])


def channels_of(net: nn.Module) -> int:
    """Channels of the picture: what the first convolution takes."""
    return next(module.in_channels for module in net.modules() if isinstance(module, nn.Conv2d))


def skeleton_of(net: nn.Module) -> nn.Module:
    """The modules up to the last map without their weights; raises ValueError for a network that is not converted."""
    if type(net) not in PARTS:
        known = ", ".join(kind.__name__ for kind in PARTS)
        raise ValueError(
            f"{type(net).__name__} cannot be made fully convolutional: it pads by the picture's size, or is not in "
            f"models/slidingwindow.py; known: {known}. Its windows can be classified crop by crop"
        )
    features, _head_for = PARTS[type(net)](net)
    return copy.deepcopy(features).to("meta", torch.float32).eval()


def stride_of(skeleton: nn.Module, channels: int, window_px: int) -> int:
    """Pixels of the picture from one place of a map to the next; raises ValueError where that is no whole number."""
    added = map_side(skeleton, channels, window_px + REACH_PX) - map_side(skeleton, channels, window_px)
    if REACH_PX % added:
        raise ValueError(f"{REACH_PX} px more give {added} places more: no whole stride")
    return REACH_PX // added


def seen_beyond(skeleton: nn.Module, channels: int, window_px: int, stride_px: int) -> tuple[int, int]:
    """How many pixels above and below its window a place sees, for its convolutions pad: rounded up to strides."""
    layer = receptive_fields(nn.Sequential(skeleton).eval(), (channels, window_px, window_px))["0"]
    assert layer.widest is not None  # a map has places
    rows = layer.widest.rows
    above, below = -rows.start, rows.at(layer.shape[1] - 1)[1] - window_px
    return -(-max(0, above) // stride_px) * stride_px, -(-max(0, below) // stride_px) * stride_px


def native_stride(net: nn.Module, window_px: int) -> int:
    """The stride that `fully_convolutional` gives; raises ValueError where it does."""
    return stride_of(skeleton_of(net), channels_of(net), window_px)


def fully_convolutional(net: nn.Module, window_px: int) -> FullyConvolutional:
    """A classification network that takes windows of `window_px` as one of whole pictures; `net` stays as it is.

    Input is what `net` takes, normalised. Raises ValueError for a network that cannot be converted, and for a window
    that its dense layers are not made for.
    """
    skeleton, channels = skeleton_of(net), channels_of(net)
    stride_px = stride_of(skeleton, channels, window_px)
    beyond_px = seen_beyond(skeleton, channels, window_px, stride_px)
    features, head_for = PARTS[type(net)](copy.deepcopy(net).eval())
    head = head_for(map_side(skeleton, channels, window_px))
    return FullyConvolutional(features, head, window_px, stride_px, beyond_px).eval()


def crops_of(pictures: Tensor, window_px: int, stride_px: int) -> Tensor:
    """All windows of pictures, each a copy: (B, C, H, W) → (B, rows, columns, C, window_px, window_px)."""
    windows = pictures.unfold(2, window_px, stride_px).unfold(3, window_px, stride_px)  # (B, C, r, c, w, w)
    return windows.permute(0, 2, 3, 1, 4, 5).contiguous()
