"""The layer table of a network: the course's numbers, and the counts that are known."""

import pytest
import torch
from torch import nn

from models.classification import ARCHITECTURES, arguments_of
from models.summary import Layer, layer_table


def table_of(name: str, px: int, classes: int = 1000, channels: int = 3) -> list[Layer]:
    with torch.device("meta"):
        network = ARCHITECTURES[name](num_classes=classes, channels=channels, **arguments_of(name, px))
    return layer_table(network, (channels, px, px))


def test_the_bottleneck_of_the_course_saves_nine_tenths_of_the_multiplications() -> None:
    """28x28x192 to 32 channels by 5x5: 120,422,400; through 16 channels by 1x1 first: 12,443,648."""
    with torch.device("meta"):
        plain = nn.Sequential(nn.Conv2d(192, 32, 5, padding=2))
        narrow = nn.Sequential(nn.Conv2d(192, 16, 1), nn.Conv2d(16, 32, 5, padding=2))
    assert sum(layer.multiplications for layer in layer_table(plain, (192, 28, 28))) == 120_422_400
    assert sum(layer.multiplications for layer in layer_table(narrow, (192, 28, 28))) == 12_443_648


def test_the_course_net_has_the_rows_of_the_course() -> None:
    rows = [(layer.shape, layer.num_parameters) for layer in table_of("lenet5_course", 32, 10) if layer.size]
    assert rows == [
        ((3, 32, 32), 0),
        ((8, 28, 28), 608), ((8, 14, 14), 0),
        ((16, 10, 10), 3_216), ((16, 5, 5), 0),
        ((120,), 48_120), ((84,), 10_164), ((10,), 850),
    ]  # fmt: skip
    assert table_of("lenet5_course", 32, 10)[1].size == 6_272


def test_filters_strides_and_paddings_are_told() -> None:
    first = table_of("resnet18", 224)[1]
    assert (first.filter, first.stride, first.padding, first.shape) == ("7", "2", "3", (64, 112, 112))
    assert first.multiplications == 64 * 112 * 112 * 3 * 49


@pytest.mark.parametrize(
    ("name", "px", "num_parameters", "multiplications"),
    [
        ("vgg16", 224, 138_357_544, 15_470_264_320),
        ("resnet50", 224, 25_557_032, 4_089_184_256),
        ("mobilenet_v2", 224, 3_504_872, 300_774_272),
        ("googlenet", 224, 6_624_904, None),  # without its side branches
    ],
)
def test_totals_are_the_published_ones(
    name: str, px: int, num_parameters: int, multiplications: int | None
) -> None:
    """Multiplications as torchvision's tables state them: 15.47, 4.09 and 0.30 billion."""
    layers = table_of(name, px)
    assert sum(layer.num_parameters for layer in layers) == num_parameters
    if multiplications:
        assert sum(layer.multiplications for layer in layers) == multiplications


def test_depthwise_filters_multiply_with_one_channel_only() -> None:
    with torch.device("meta"):
        net = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    assert layer_table(nn.Sequential(net), (8, 10, 10))[1].multiplications == 8 * 100 * 9


def test_an_input_that_is_too_small_is_one_line() -> None:
    with pytest.raises(ValueError, match="cannot take an input of 3x16x16") as caught:
        table_of("alexnet", 16)
    assert "\n" not in str(caught.value)
