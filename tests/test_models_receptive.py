"""Receptive fields against published sides, worked by hand, and against gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.classification import ARCHITECTURES, arguments_of, least_px
from models.receptive import Field, LayerFields, Span, receptive_fields
from models.units import activations

# Araujo, Norris, Sim 2019 (https://distill.pub/2019/computing-receptive-fields); of ResNets the side for strides in the
# 3x3 convolution, as torchvision has them.
PUBLISHED = {
    ("alexnet", 224): ("avgpool", 195, 32),
    ("vgg16", 224): ("features", 212, 32),
    ("resnet18", 224): ("layer4", 435, 32),
    ("resnet50", 224): ("layer4", 427, 32),
    ("inception_v3", 299): ("Mixed_7c", 1311, 32),
    ("mobilenet_v2", 224): ("features", 491, 32),
}


def fields_of(name: str, height: int, width: int) -> dict[str, LayerFields]:
    with torch.device("meta"):
        net = ARCHITECTURES[name](num_classes=5, channels=3, **arguments_of(name, 32))
    return receptive_fields(net, (3, height, width))


def widest(layer: LayerFields) -> Field:
    assert layer.widest is not None
    return layer.widest


@pytest.mark.parametrize(("network", "known"), PUBLISHED.items())
def test_the_fields_are_those_that_were_published(
    network: tuple[str, int], known: tuple[str, int, int]
) -> None:
    (name, px), (layer, side, stride) = network, known
    rows, columns = (
        widest(fields_of(name, px, px)[layer]).rows,
        widest(fields_of(name, px, px)[layer]).columns,
    )
    assert (rows.side, rows.stride) == (columns.side, columns.stride) == (side, stride)


def test_lenet_worked_by_hand() -> None:
    layers = fields_of("lenet5", 32, 32)
    spans = {name: widest(layers[f"features.{name}"]).rows for name in (0, 2, 3, 5)}
    assert spans == {0: Span(0, 5, 1), 2: Span(0, 6, 2), 3: Span(0, 14, 2), 5: Span(0, 16, 4)}
    assert spans[5].at(4) == (16, 32)
    assert layers["features.5"].shape == (16, 5, 5)
    assert layers["classifier.0"].widest is None and not layers["classifier.0"].has_places


def test_fields_are_the_same_in_inference_mode() -> None:
    with torch.inference_mode():
        inside = fields_of("resnet18", 64, 64)
    assert inside == fields_of("resnet18", 64, 64)


def test_padding_moves_the_start_and_same_padding_depends_on_the_side() -> None:
    assert widest(fields_of("resnet18", 64, 64)["conv1"]).rows == Span(-3, 7, 2)
    # TensorFlow's SAME: of an even side nothing is missing at the left, of an odd one a pixel
    layer = fields_of("efficientnet_lite0", 64, 65)["_conv_stem"]
    assert (widest(layer).rows, widest(layer).columns) == (Span(0, 3, 2), Span(-1, 3, 2))


def test_each_branch_has_its_own_field() -> None:
    layer = fields_of("googlenet", 64, 64)["inception3a"]
    one, three, five, pooled = (layer.fields[unit] for unit in (0, 64, 64 + 128, 64 + 128 + 32))
    assert one is not None and three is not None and five is not None
    assert (three.rows.side - one.rows.side, three.rows.stride) == (2 * 8, 8)
    # the branch called 5x5 has 3x3 filters, as in torchvision
    assert five == three == pooled == widest(layer)


def test_a_split_filter_sees_a_row_and_a_column() -> None:
    layers = fields_of("inception_v3", 299, 299)
    row, column = (layers[f"Mixed_7b.branch3x3_{name}"] for name in ("2a", "2b"))
    assert widest(row).columns.side - widest(row).rows.side == 2 * 32
    assert widest(column).rows.side - widest(column).columns.side == 2 * 32


def test_what_a_shortcut_fills_with_zeros_sees_nothing() -> None:
    layer = fields_of("resnet8_cifar", 32, 32)["layers.1.downsample"]
    sides = [field.rows.side for field in layer.fields if field is not None]
    assert sides == [0] * 8 + [widest(layer).rows.side] * 16 + [0] * 8


def test_an_operation_that_is_not_known_is_named() -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flip(2)

    with pytest.raises(ValueError, match=r"aten\.flip does to receptive fields is not known"):
        receptive_fields(nn.Sequential(Turned()).to("meta"), (3, 8, 8))
    with pytest.raises(ValueError, match="of transposed convolutions are not known"):
        receptive_fields(nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2)).to("meta"), (3, 8, 8))


def averaging(pool: Callable[..., Any]) -> Callable[..., Any]:
    """Pooling in which every place of a window counts, of the same windows."""

    def pooled(x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
               ceil_mode: bool = False, return_indices: bool = False) -> Tensor:  # fmt: skip
        assert dilation == 1 and not return_indices
        return pool(x, kernel_size, stride, padding, ceil_mode)

    return pooled


def counting(net: nn.Module) -> nn.Module:
    """A network in which all that could count does: positive filters that average, norms that change nothing."""
    net = net.double().eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    return net


def seen_by(net: nn.Module, layer: str, unit: int, place: tuple[int, int], picture: Tensor) -> Tensor:
    """(H, W) bool: the pixels that a unit has a gradient by."""
    picture = picture.clone().requires_grad_()
    activations(net, [layer], picture)[layer][0, unit][place].backward()
    assert picture.grad is not None
    return picture.grad[0].abs().sum(0) > 0


def box_of(seen: Tensor) -> tuple[int, int, int, int]:
    rows, columns = (seen.any(axis).nonzero()[:, 0] for axis in (1, 0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


# networks, the layer, and a picture that is wide enough, or high, for a unit in its middle to see no border
STRIPS = [
    ("lenet5", "features", 32, 32), ("overfeat_course", "features", 14, 14), ("airnet_narrow", "groups", 9, 80),
    ("alexnet", "features.12", 63, 300), ("vgg11", "features", 32, 250), ("plain20_cifar", "layers", 4, 120),
    ("plain18", "layer3", 8, 300), ("nin", "features.11", 8, 60), ("squeezenet1_1", "features.8", 17, 170),
    ("googlenet", "inception4a", 15, 250), ("googlenet", "inception4a", 250, 15),
]  # fmt: skip


@pytest.mark.parametrize(("name", "layer", "height", "width"), STRIPS)
def test_without_shortcuts_the_pixels_with_a_gradient_are_the_field(
    name: str, layer: str, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(F, "max_pool2d", averaging(F.avg_pool2d))
    fields = fields_of(name, height, width)[layer]
    net = counting(ARCHITECTURES[name](num_classes=5, channels=3, **arguments_of(name, 32)))
    picture = torch.full((1, 3, height, width), 1e-3, dtype=torch.float64)
    place = (fields.shape[1] // 2, fields.shape[2] // 2)
    whole = False
    for unit in {0, len(fields.fields) // 2, len(fields.fields) - 1}:
        field = fields.fields[unit]
        assert field is not None
        (top, bottom), (left, right) = field.rows.at(place[0]), field.columns.at(place[1])
        wanted = torch.zeros(height, width, dtype=torch.bool)
        wanted[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
        assert torch.equal(seen_by(net, layer, unit, place, picture), wanted)
        whole |= (left >= 0 and right <= width) if width >= height else (top >= 0 and bottom <= height)
    assert whole, "the picture is too small to show a whole field"


@pytest.mark.parametrize(
    ("name", "layer", "width"),
    [("resnet8_cifar", "layers", 60), ("resnet18", "layer2", 150), ("mobilenet_v2", "features.10", 260),
     ("efficientnet_lite0", "_blocks.4", 130)],
)  # fmt: skip
def test_with_shortcuts_the_field_is_the_least_box_around_the_pixels_with_a_gradient(
    name: str, layer: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(F, "max_pool2d", averaging(F.avg_pool2d))
    fields = fields_of(name, 32, width)[layer]
    net = counting(ARCHITECTURES[name](num_classes=5, channels=3))
    place = (fields.shape[1] // 2, fields.shape[2] // 2)
    picture = torch.full((1, 3, 32, width), 1e-3, dtype=torch.float64)
    left, right = widest(fields).columns.at(place[1])
    assert left >= 0 and right <= width
    assert box_of(seen_by(net, layer, 16, place, picture))[2:] == (left, right)


DEEPER = (
    "13", "16", "19", "13_bn", "16_bn", "19_bn", "32_cifar", "44_cifar", "56_cifar", "110_cifar", "34", "101", "152"
)  # fmt: skip


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if not name.endswith(DEEPER)])
def test_no_pixel_outside_the_field_has_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    px = max(32, least_px(name))
    net = ARCHITECTURES[name](num_classes=5, channels=3, **arguments_of(name, px)).eval()
    known = fields_of(name, px, px)
    layers = [each for each in known if known[each].has_places and known[each].shape[1] > 2]
    for layer in (layers[len(layers) // 4], layers[len(layers) // 2]):
        fields = known[layer]
        place = (0, fields.shape[2] - 1)
        unit = len(fields.fields) // 2
        field = fields.fields[unit]
        assert field is not None
        seen = seen_by(net, layer, unit, place, torch.randn(1, 3, px, px))
        (top, bottom), (left, right) = field.rows.at(place[0]), field.columns.at(place[1])
        seen[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = False
        assert not seen.any()
